"""Graphs as other people's tools write them: they are taken, or refused with what to do instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from benchmarks.exports.graphs import competition_like, keras_like
from models.errors import ModelError
from models.onnx.forms.plain import Asked
from models.onnx.importer import read_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.onnx.graphs import graph_of, normal

node = helper.make_node


@pytest.mark.parametrize("family", [keras_like, competition_like])
def test_what_other_tools_write_is_taken_as_the_network_that_it_is(family: Any) -> None:
    """The file itself in ONNX Runtime, on inputs of its own shape, and our network."""
    taken = 0
    for name, data in family():
        found = read_onnx_bytes(data, asked=Asked(classifier=False))
        network = found.network
        x = np.random.default_rng(0).random((1, *network.input_shape)).astype(np.float32)
        expected = OnnxRuntimeModel(found.deployed, network.input_shape, plain=True)(x)
        with torch.no_grad():
            given = network(torch.from_numpy(x)).numpy()
        assert np.abs(given - expected).max() <= 1e-5 * (1 + np.abs(expected).max()), name
        if network.dropped_output is None:
            session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
            (own,) = session.get_inputs()
            sizes = [1 if isinstance(size, str) else size for size in own.shape]
            (whole,) = session.run(None, {own.name: x.reshape(sizes)})
            assert np.abs(whole.reshape(-1) - expected[0]).max() <= 1e-5 * (1 + np.abs(whole).max())
        taken += 1
    assert taken >= 7


def sent(operator: str = "Relu", kind: int = TensorProto.FLOAT, second: str = "") -> bytes:
    """An operator and a dense layer, in numbers of a type, of one input or two."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weight = {"w": normal(0, 6, 3).astype(dtype)}
    nodes = [node(operator, ["x"], ["h"])]
    if second:
        nodes.append(node("Add", ["h", second], ["s"]))
    nodes.append(node("MatMul", ["s" if second else "h", "w"], ["y"]))
    model = graph_of(nodes, (6,), weight)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = kind
    if second:
        model.graph.input.append(helper.make_tensor_value_info(second, kind, ["N", 6]))
    return model.SerializeToString()


def quantised() -> bytes:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("MatMul", ["d", "w"], ["y"]),
    ]
    constants = {"s": np.float32(0.1), "z": np.int8(0), "w": normal(0, 6, 3)}
    return graph_of(nodes, (6,), constants).SerializeToString()


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (sent(kind=TensorProto.DOUBLE), "unsupported_dtype", "model.float()"),
        (sent(kind=TensorProto.FLOAT16), "unsupported_dtype", "before it was converted"),
        (quantised(), "unsupported_dtype", "the float32 one that it was made from"),
        (sent("Tan"), "unsupported_operator", "outside the model"),
        (sent(second="z"), "invalid_network", "fixed values"),
    ],
)
def test_what_is_not_taken_says_what_to_do_instead(data: bytes, code: str, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_onnx_bytes(data)
    assert caught.value.code == code
    assert said in caught.value.hint


def test_the_largest_number_of_signed_features_normalises_nothing_here() -> None:
    """ONNX Runtime takes the largest number, not the largest size: a length that may be below 0."""
    nodes = [
        node("Normalizer", ["x"], ["h"], domain="ai.onnx.ml", norm="MAX"),
        node("MatMul", ["h", "w"], ["y"]),
    ]
    model = graph_of(nodes, (6,), {"w": normal(0, 6, 3)})
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    with pytest.raises(ModelError, match="only L1 and L2") as caught:
        read_onnx_bytes(model.SerializeToString())
    assert caught.value.code == "unsupported_operator"
