"""A good graph, and every place where an ONNX file may point outside itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.models.onnx.graphs import graph_of, normal

node = helper.make_node


def good() -> ModelProto:
    """A dense layer, [4] to [3]."""
    constants = {"w": normal(0, 4, 3), "b": normal(1, 3)}
    return graph_of([node("Gemm", ["x", "w", "b"], ["y"])], (4,), constants)


def external(tensor: TensorProto, location: str) -> TensorProto:
    """The tensor, as if its numbers lay in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def sparse() -> Any:
    """A sparse tensor."""
    values = numpy_helper.from_array(np.ones(1, np.float32), "sv")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0])), [3])


def in_initializer(model: ModelProto, location: str) -> None:
    external(model.graph.initializer[0], location)


def in_constant(model: ModelProto, location: str) -> None:
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "v")
    model.graph.node.append(node("Constant", [], ["c"], value=external(tensor, location)))


def in_sparse_initializer(model: ModelProto, location: str) -> None:
    tensor = sparse()
    external(tensor.values, location)
    model.graph.sparse_initializer.append(tensor)


def in_sparse_indices(model: ModelProto, location: str) -> None:
    tensor = sparse()
    external(tensor.indices, location)
    model.graph.node.append(node("Constant", [], ["c"], sparse_value=tensor))


def in_subgraph(model: ModelProto, location: str) -> None:
    inner = graph_of([node("Relu", ["x"], ["z"])], (3,), {"q": normal(0, 2)}, output="z").graph
    external(inner.initializer[0], location)
    model.graph.node.append(node("If", ["y"], ["z"], then_branch=inner, else_branch=inner))


def in_function(model: ModelProto, location: str) -> None:
    tensor = external(numpy_helper.from_array(np.ones(3, np.float32), "v"), location)
    model.functions.append(
        helper.make_function("own", "F", ["a"], ["b"], [node("Constant", [], ["b"], value=tensor)],
                             [helper.make_opsetid("", 13)])
    )  # fmt: skip


def in_training(model: ModelProto, location: str) -> None:
    info = model.training_info.add()
    info.algorithm.initializer.append(
        external(numpy_helper.from_array(np.ones(3, np.float32), "v"), location)
    )
