"""Small ONNX graphs made by hand, and the one question asked of them all: does the import agree?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from models.network import Network
from models.onnx.forms.inner_values import refuse_other_values
from models.onnx.importer import read_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel

Array = NDArray[Any]


def graph_of(
    nodes: Sequence[NodeProto],
    shape: Sequence[int],
    constants: Mapping[str, Array] | None = None,
    *,
    opset: int = 13,
    batch: int | str = "N",
    output: str = "y",
) -> ModelProto:
    """A model with input ``x`` [batch, *shape] and output ``output``."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10 if opset > 20 else 8,
    )


def flattened(
    nodes: Sequence[NodeProto],
    shape: Sequence[int],
    constants: Mapping[str, Array] | None = None,
    **options: Any,
) -> bytes:
    """The same, with its output ``y`` flattened to logits (and bent, lest there be no layer)."""
    flat = helper.make_node("Flatten", ["y"], ["flat"], axis=1)
    bent = helper.make_node("LeakyRelu", ["flat"], ["logits"], alpha=0.5)
    return graph_of(
        [*nodes, flat, bent], shape, constants, output="logits", **options
    ).SerializeToString()


def assert_agrees(data: bytes, *, samples: int = 2, seed: int = 0, scale: float = 1.0) -> Network:
    """Import the graph; its logits are ONNX Runtime's on random inputs, and so is every value."""
    imported = read_onnx_bytes(data)
    refuse_other_values(imported)
    assert_same_logits(imported.network, data, samples=samples, seed=seed, scale=scale)
    return imported.network


def assert_same_logits(
    network: Network, data: bytes, *, samples: int = 2, seed: int = 0, scale: float = 1.0
) -> None:
    """Its logits are ONNX Runtime's of the file on random inputs."""
    rng = np.random.default_rng(seed)
    x = (scale * rng.standard_normal((samples, *network.input_shape))).astype(np.float32)
    expected = OnnxRuntimeModel(data, network.input_shape)(x)
    with torch.no_grad():
        given = network(torch.from_numpy(x)).numpy()
    assert given.shape == expected.shape
    size = np.nan_to_num(np.abs(expected)).max() + 1e-3
    close = np.isclose(given, expected, rtol=0.0, atol=2e-5 * size, equal_nan=True)
    assert close.all(), network.description()


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    """Standard normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
