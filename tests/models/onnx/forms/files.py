"""Files in the forms of other exporters, and their own answers by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from tests.models.onnx.graphs import normal

__all__ = ["answers_of", "floats", "labels_and_maps", "linear_classifier", "nnet", "written"]

node = helper.make_node
Array = NDArray[Any]


def floats(name: str, *shape: int | str | None) -> ValueInfoProto:
    """A declared tensor of floats."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def written(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    constants: Mapping[str, Array],
    *,
    opset: int = 13,
) -> bytes:
    """A file of these nodes, with operators of scikit-learn's converters allowed."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        list(inputs),
        list(outputs),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 1)]
    model: ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=8)
    return model.SerializeToString()


def nnet(sizes: Sequence[int] = (5, 7, 4)) -> bytes:
    """W x + b on an input [features] without a batch axis, as ACAS Xu networks were converted."""
    nodes, constants, last = [], {}, "x"
    for index, (before, after) in enumerate(pairwise(sizes)):
        constants[f"w{index}"] = normal(index, after, before)
        constants[f"b{index}"] = normal(10 + index, after)
        nodes.append(node("MatMul", [f"w{index}", last], [f"m{index}"]))
        nodes.append(node("Add", [f"m{index}", f"b{index}"], [f"h{index}"]))
        last = f"h{index}"
        if index < len(sizes) - 2:
            nodes.append(node("Relu", [last], [f"r{index}"]))
            last = f"r{index}"
    return written(nodes, [floats("x", sizes[0])], [floats(last, sizes[-1])], constants)


def labels_and_maps() -> list[ValueInfoProto]:
    """The outputs of a classifier of scikit-learn: labels, and a list of maps to probabilities."""
    maps = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, ())
    )
    return [
        helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
        helper.make_value_info("maps", helper.make_sequence_type_proto(maps)),
    ]


def linear_classifier(
    *,
    opposite: bool = False,
    transform: str = "SOFTMAX",
    normalized: bool = True,
    classes: Sequence[int] | None = None,
) -> bytes:
    """Scaled features, linear scores, probabilities, labels: LogisticRegression in a pipeline.

    classes: what the file calls them, by place; None: 0, 1, ...
    """
    weights, intercepts = normal(0, 3, 4), normal(1, 3)
    if opposite:
        weights, intercepts = np.stack([-weights[0], weights[0]]), intercepts[:1] * [-1, 1]
    classes = list(range(len(intercepts)) if classes is None else classes)
    nodes = [
        node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.1, 0.2, 0.3, 0.4],
             scale=[2.0, 1.0, 3.0, 0.5]),
        node("LinearClassifier", ["s"], ["label", "p"], domain="ai.onnx.ml",
             coefficients=[float(number) for number in weights.reshape(-1)],
             intercepts=[float(number) for number in intercepts],
             classlabels_ints=classes, post_transform=transform),
        node("Normalizer", ["p"], ["q"], domain="ai.onnx.ml", norm="L1")
        if normalized
        else node("Identity", ["p"], ["q"]),
        node("ZipMap", ["q"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=classes),
    ]  # fmt: skip
    return written(nodes, [floats("x", None, 4)], labels_and_maps(), {}, opset=9)


def answers_of(data: bytes, x: Array, output: str) -> list[Any]:
    """One output of the whole file, for every row alone."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    batched = len(given.shape) == x.ndim
    return [session.run([output], {given.name: row[None] if batched else row})[0] for row in x]
