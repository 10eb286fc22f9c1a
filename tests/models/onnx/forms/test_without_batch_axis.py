"""Files whose input, or a part of whose graph, has no batch axis: one sample at a time, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    RuntimeException,
)

from models.errors import ModelError
from models.onnx.importer import read_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from tests.models.onnx.forms.files import answers_of, floats, nnet, node, written
from tests.models.onnx.graphs import assert_agrees, flattened, graph_of, normal


def test_a_network_of_one_vector_runs_one_at_a_time() -> None:
    data = nnet()
    imported = read_onnx_bytes(data)
    assert imported.batch == 1
    assert imported.network.input_shape == (5,)
    network = assert_agrees(data, samples=4)
    kinds = [network.layer(row.name).kind for row in network.nodes]
    assert kinds == ["linear", "relu", "linear"]
    x = normal(3, 3, 5)
    found = OnnxRuntimeModel(imported.deployed, (5,))(x)
    np.testing.assert_array_equal(found, np.stack(answers_of(data, x, "h1")))


@st.composite
def views(draw: st.DrawFn) -> tuple[list[Any], dict[str, Any]]:
    """Nodes that take the batch of one row away, bring it back, and move axes in between."""
    nodes, constants, last = [], {}, "x"
    shape = [1, 2, 3]
    for index in range(draw(st.integers(1, 6))):
        kind = draw(
            st.sampled_from(
                ["squeeze", "unsqueeze", "view", "turn", "relu", "max", "join", "cut", "flat"]
            )
        )
        name, rank = f"v{index}", len(shape)
        axis = draw(st.integers(0, rank - 1)) if rank else 0
        given = axis - draw(st.sampled_from([0, rank]))
        if kind == "squeeze":
            nodes.append(node("Squeeze", [last], [name]))
            shape = [size for size in shape if size > 1]
        elif kind == "unsqueeze":
            constants[f"c{index}"] = np.array([axis], np.int64)
            nodes.append(node("Unsqueeze", [last, f"c{index}"], [name]))
            shape = [*shape[:axis], 1, *shape[axis:]]
        elif kind == "view":
            shape = draw(st.sampled_from([[6], [1, 6], [2, 3], [3, 2], [6, 1], [1, 3, 2]]))
            target = [*shape]
            target[draw(st.integers(0, len(shape) - 1))] = -1
            constants[f"c{index}"] = np.array(target, np.int64)
            nodes.append(node("Reshape", [last, f"c{index}"], [name]))
        elif kind == "turn":
            perm = draw(st.permutations(range(rank)))
            nodes.append(node("Transpose", [last], [name], perm=perm))
            shape = [shape[place] for place in perm]
        elif kind == "flat":
            nodes.append(node("Flatten", [last], [name], axis=axis))
            before = int(np.prod(shape[:axis], dtype=int))
            shape = [before, 6 // before]
        elif kind == "join" and shape[axis] > 1:
            nodes.append(node("Concat", [last, last], [f"{name}j"], axis=given))
            constants[f"c{index}"] = np.arange(shape[axis], dtype=np.int64)
            nodes.append(node("Gather", [f"{name}j", f"c{index}"], [name], axis=given))
        elif kind == "cut":
            numbers = {"s": 0, "e": 2**31 - 1, "a": given}
            constants |= {f"c{index}{k}": np.array([n], np.int64) for k, n in numbers.items()}
            nodes.append(node("Slice", [last, *(f"c{index}{k}" for k in numbers)], [name]))
        else:
            nodes.append(node("Relu" if kind != "max" else "LeakyRelu", [last], [name]))
        last = name
    constants["end"] = np.array([1, 6], np.int64)
    return [*nodes, node("Reshape", [last, "end"], ["y"])], constants


@settings(max_examples=examples(80), deadline=None)
@given(views(), st.booleans())
def test_a_batch_of_one_row_may_come_and_go(made: Any, given_axis: bool) -> None:
    """Accepted graphs are ONNX Runtime's; what moves a batch axis that is there may be refused."""
    nodes, constants = made
    shape = (1, 2, 3) if given_axis else (6,)
    if not given_axis:
        constants = {**constants, "begin": np.array([1, 2, 3], np.int64)}
        nodes = [node("Reshape", ["in", "begin"], ["x"]), *nodes]
    bent = node("LeakyRelu", ["y"], ["logits"], alpha=0.5)
    data = written(
        [*nodes, bent],
        [floats("x" if given_axis else "in", *shape)],
        [floats("logits", 1, 6)],
        constants,
    )
    try:
        network = read_onnx_bytes(data).network
    except ModelError as error:
        assert error.code == "batch_dependent", error  # noqa: PT017 - what the property says
        return
    x = normal(0, 2, *network.input_shape)
    session = answers_of(data, x.reshape(2, *(shape[1:] if given_axis else shape)), "logits")
    np.testing.assert_array_equal(
        OnnxRuntimeModel(data, network.input_shape)(x), np.concatenate(session)
    )
    assert_agrees(data)


def test_the_shape_of_a_vector_has_no_batch_size() -> None:
    nodes = [node("Shape", ["x"], ["s"]), node("Reshape", ["x", "s"], ["r"])]
    nodes.append(node("LeakyRelu", ["r"], ["y"]))
    data = written(nodes, [floats("x", 4)], [floats("y", 4)], {})
    assert_agrees(data)
    with pytest.raises(ModelError, match="declares"):
        read_onnx_bytes(written(nodes, [floats("x", 4)], [floats("y", 1, 4)], {}))


def test_a_squeeze_without_axes_is_taken_at_batch_1_only() -> None:
    nodes = [node("Squeeze", ["x"], ["s"]), node("Relu", ["s"], ["r"])]
    constants = {"w": normal(0, 3, 4)}
    nodes.append(node("MatMul", ["r", "w"], ["y"]))
    assert_agrees(graph_of(nodes, (1, 3), constants, batch=1).SerializeToString())
    with pytest.raises(ModelError) as caught:
        read_onnx_bytes(graph_of(nodes, (1, 3), constants, batch="N").SerializeToString())
    assert caught.value.code == "batch_dependent"


@pytest.mark.parametrize(
    "end",
    [
        [node("Add", ["x", "wide"], ["y"])],
        [node("Concat", ["x", "row"], ["y"], axis=0)],
        [node("Gemm", ["x", "w"], ["y"])],
        [node("BatchNormalization", ["x", "row", "row", "row", "row"], ["y"])],
        [node("ReduceL2", ["x"], ["y"], axes=[0])],
        [node("MatMul", ["x", "cube"], ["y"])],
    ],
)
def test_what_counts_on_a_batch_axis_is_refused_by_name(end: Any) -> None:
    constants = {"wide": normal(0, 2, 4), "row": normal(1, 4) ** 2, "w": normal(2, 4, 4)}
    constants["cube"] = normal(3, 2, 4, 4)
    data = written(end, [floats("x", 4)], [floats("y", None, None)], constants)
    with pytest.raises(ModelError) as caught:
        read_onnx_bytes(data)
    assert caught.value.code in ("unsupported_operator", "batch_dependent", "shape_mismatch")


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_a_batch_that_is_fixed_is_filled_up(batch: int) -> None:
    constants = {"w": normal(0, 12, 4), "s": np.array([batch, 12], np.int64)}
    nodes = [node("Reshape", ["x", "s"], ["f"]), node("MatMul", ["f", "w"], ["l"])]
    data = graph_of([*nodes, node("Softmax", ["l"], ["y"])], (3, 4), constants, batch=batch)
    imported = read_onnx_bytes(data.SerializeToString())
    assert (imported.batch, imported.network.input_shape) == (batch, (3, 4))
    assert_agrees(data.SerializeToString(), samples=7)


def test_a_fixed_first_axis_may_belong_to_the_sample() -> None:
    """[3, 4] is one sample where the graph has one answer for it."""
    constants = {"w": normal(0, 12, 4), "s": np.array([1, 12], np.int64)}
    nodes = [node("Reshape", ["x", "s"], ["f"]), node("MatMul", ["f", "w"], ["y"])]
    data = graph_of(nodes, (4,), constants, batch=3).SerializeToString()
    imported = read_onnx_bytes(data)
    assert (imported.batch, imported.network.input_shape) == (1, (3, 4))
    assert_agrees(data, samples=3)


def test_rows_of_a_fixed_batch_that_meet_are_refused() -> None:
    nodes = [node("ReduceMean", ["x"], ["m"], axes=[0]), node("Sub", ["x", "m"], ["y"])]
    with pytest.raises(ModelError):
        read_onnx_bytes(flattened(nodes, (4,), batch=3, opset=11))


@pytest.mark.parametrize("opset", [7, 8])
@pytest.mark.parametrize("kind", ["Max", "Min", "Sum"])
@pytest.mark.parametrize(
    ("shape", "constant"),
    [
        *(([4], [4]), ([4], [1]), ([4], [])),
        *(([1, 4], [1, 4]), ([1, 4], [4]), ([1, 4], [1]), ([1, 4], [])),
        *((["N", 4], [1, 4]), (["N", 4], [4]), (["N", 4], [])),
    ],
)
def test_what_broadcasts_only_in_newer_opsets_is_refused_as_onnx_runtime_does(
    kind: str, opset: int, shape: list[Any], constant: list[int]
) -> None:
    """Or a graph is accepted that runs nowhere; and none is refused that runs."""
    value = np.full(constant, 0.25, np.float32)
    nodes = [node("Abs", ["x"], ["a"]), node(kind, ["a", "c"], ["b"]), node("Tanh", ["b"], ["y"])]
    data = written(nodes, [floats("x", *shape)], [floats("y", *shape)], {"c": value}, opset=opset)
    x = normal(1, *(3 if size == "N" else size for size in shape))
    try:
        onnxruntime.InferenceSession(data).run(None, {"x": x})
        runs = True
    except (Fail, InvalidArgument, RuntimeException):
        runs = False
    assert runs == (opset == 8 or shape == constant)
    if runs:
        read_onnx_bytes(data)
    else:
        with pytest.raises(ModelError) as refusal:
            read_onnx_bytes(data)
        assert refusal.value.code == "invalid_onnx"
