"""A softmax at the end is cut off, by the import and by the runtime alike: logits stay logits."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from models.errors import ModelError
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes, read_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from tests.models.onnx.graphs import assert_agrees, graph_of, normal

node = helper.make_node


def classifier(
    *end: Any, shape: tuple[int, ...] = (6,), trailing: bool = False, **options: Any
) -> bytes:
    """A dense layer with logits ``l`` and the nodes behind it."""
    constants = {"w": normal(0, 6, 4), "free": normal(1, 4)}
    nodes = [node("MatMul", ["x", "w"], ["l0"]), node("LeakyRelu", ["l0"], ["l"], alpha=0.5)]
    if trailing:
        constants["s"] = np.array([-1, 4, 1, 1], np.int64)
        nodes[1].output[0] = "l1"
        nodes.append(node("Reshape", ["l1", "s"], ["l"]))
    return graph_of([*nodes, *end], shape, constants, **options).SerializeToString()


def deployed_output(data: bytes, x: Any) -> Any:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@settings(max_examples=examples(40), deadline=None)
@given(
    st.sampled_from(range(7, 27)),
    st.sampled_from(["Softmax", "LogSoftmax"]),
    st.sampled_from([1, -1, None]),
    st.integers(0, 2),
    st.sampled_from(["N", 1]),
)
def test_logits_are_those_before_the_softmax(
    opset: int, op: str, axis: int | None, identities: int, batch: int | str
) -> None:
    if axis == -1 and opset < 11:
        axis = 1
    options = {} if axis is None else {"axis": axis}
    names = ["l", *(f"i{index}" for index in range(identities)), "y"]
    nodes = [node(op, ["l"], [names[1]], **options)]
    nodes += [node("Identity", [a], [b]) for a, b in pairwise(names[1:])]
    data = classifier(*nodes, opset=opset, batch=batch)
    network = assert_agrees(data, samples=4)
    assert network.dropped_output == op
    model = OnnxRuntimeModel(data, (6,))
    assert model.dropped_output == op
    x = normal(1, 5, 6)
    logits = model(x)
    bare = classifier(node("Identity", ["l"], ["y"]), opset=opset, batch=batch)
    np.testing.assert_array_equal(logits, OnnxRuntimeModel(bare, (6,))(x))
    whole = np.concatenate([deployed_output(data, x[i : i + 1]) for i in range(5)])
    expected = torch.log_softmax(torch.from_numpy(logits), 1).numpy()
    np.testing.assert_allclose(whole, expected if op[0] == "L" else np.exp(expected), atol=1e-5)
    assert (whole.argmax(1) == logits.argmax(1)).all()


@pytest.mark.parametrize(("opset", "axis"), [(9, 1), (11, 1), (13, 1), (13, -3), (21, 1)])
def test_logits_with_trailing_axes(opset: int, axis: int) -> None:
    data = classifier(node("Softmax", ["l"], ["y"], axis=axis), trailing=True, opset=opset)
    assert assert_agrees(data, samples=3).classes == 4


def test_the_softmax_may_carry_value_info() -> None:
    """Shape inference has been run: the logits' entry does not stand beside the new output's."""
    constants = {"w": normal(0, 6, 4)}
    nodes = [node("Gemm", ["x", "w"], ["l"]), node("Softmax", ["l"], ["y"])]
    model = graph_of(nodes, (6,), constants)
    info = helper.make_tensor_value_info("l", TensorProto.FLOAT, ["N", 4])
    model.graph.value_info.append(info)
    assert_agrees(model.SerializeToString(), samples=3)


def test_what_was_dropped_is_written_down(tmp_path: Path) -> None:
    network = import_onnx_bytes(classifier(node("Softmax", ["l"], ["y"])))
    plain = import_onnx_bytes(classifier(node("Identity", ["l"], ["y"])))
    assert plain.dropped_output is None
    assert "dropped_output" not in plain.description()
    network.save(tmp_path)
    loaded = Network.load(tmp_path)
    assert loaded.dropped_output == "Softmax"
    assert loaded.graph_digest() == network.graph_digest() != plain.graph_digest()
    assert network.normalized([0.5], [0.5]).dropped_output == "Softmax"
    exported = import_onnx_bytes(export_onnx(network))
    assert exported.dropped_output is None
    assert torch.equal(exported(torch.ones(1, 6)), network(torch.ones(1, 6)))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (classifier(node("Softmax", ["l"], ["y"], axis=0)), "batch_dependent"),
        (classifier(node("Softmax", ["l"], ["y"], axis=2)), "shape_mismatch"),
        (classifier(node("Softmax", ["l"], ["y"]), trailing=True), "unsupported_operator"),
        (classifier(node("Softmax", ["l"], ["y"], axis=2), trailing=True, opset=11),
         "unsupported_operator"),
        (classifier(node("Softmax", ["l"], ["y"], beta=1.0)), "invalid_onnx"),
        (classifier(node("Softmax", ["l"], ["w"]), output="w"), "invalid_onnx"),
        (classifier(node("Softmax", ["l"], ["free"]), output="free"), "invalid_onnx"),
        (classifier(node("Softmax", ["l"], ["y"]), node("Softmax", ["l"], ["y"])),
         "invalid_onnx"),
        (classifier(node("Softmax", ["nowhere"], ["y"])), "invalid_network"),
        (classifier(node("Softmax", ["x"], ["y"])), "invalid_network"),
        (classifier(node("Softmax", ["w"], ["y"])), "invalid_network"),
        (classifier(node("Softmax", ["y"], ["y"])), "invalid_onnx"),
    ],
)  # fmt: skip
def test_refused(data: bytes, code: str) -> None:
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(data)
    assert caught.value.code == code, caught.value


@pytest.mark.parametrize(
    "end",
    [
        [node("Softmax", ["l"], ["y"]), node("Relu", ["y"], ["z"])],
        [node("Softmax", ["l"], ["s"]), node("Identity", ["s"], ["y"]), node("Det", ["s"], ["z"])],
    ],
)
def test_nodes_that_no_output_needs_are_cut_away_first(end: Any) -> None:
    data = classifier(*end)
    bare = classifier(node("Softmax", ["l"], ["y"]))
    assert import_onnx_bytes(data).graph_digest() == import_onnx_bytes(bare).graph_digest()
    x = normal(1, 3, 6)
    np.testing.assert_array_equal(OnnxRuntimeModel(data, (6,))(x), OnnxRuntimeModel(bare, (6,))(x))


def test_a_log_softmax_elsewhere_is_a_part_of_the_network() -> None:
    """Behind it something else, or one more that is left out."""
    for last, dropped in (("Neg", None), ("Softmax", "Softmax")):
        data = classifier(node("LogSoftmax", ["l"], ["s"]), node(last, ["s"], ["y"]))
        imported = read_onnx_bytes(data)
        assert imported.network.dropped_output == dropped
        kinds = [imported.network.layer(row.name).kind for row in imported.network.nodes]
        assert "log" in kinds
        x = normal(1, 3, 6)
        with torch.no_grad():
            given = imported.network(torch.from_numpy(x)).numpy()
        expected = OnnxRuntimeModel(imported.deployed, (6,), plain=True)(x)
        np.testing.assert_allclose(given, expected, atol=1e-5)


def test_a_class_number_elsewhere_is_explained() -> None:
    data = classifier(node("ArgMax", ["l"], ["s"]), node("Neg", ["s"], ["y"]))
    for read in (import_onnx_bytes, lambda data: OnnxRuntimeModel(data, (6,))):
        with pytest.raises(ModelError, match="very last") as caught:
            read(data)
        assert "logits" in caught.value.hint


def test_every_unknown_operator_is_named_at_once() -> None:
    data = classifier(
        node("Tan", ["l"], ["a"], name="first"),
        node("ArgMax", ["a"], ["b"]),
        node("Tan", ["b"], ["c"], name="second"),
        node("Acos", ["c"], ["y"]),
    )
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(data)
    message = str(caught.value)
    assert "'Tan' (node 'first' and 1 more)" in message
    assert "'ArgMax' (node #3; it is supported only as the very last one" in message
    assert "'Acos' (node #5) are not supported" in message
    assert "MatMul" in caught.value.hint
