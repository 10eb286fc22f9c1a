"""Operators that move or reshape: import = ONNX Runtime, in every form they are written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, NodeProto, TensorProto, helper

from models.errors import ModelError
from models.onnx.importer import import_onnx_bytes, read_onnx_bytes
from tests.extent import examples
from tests.models.onnx.graphs import assert_agrees, flattened, graph_of, normal

node = helper.make_node
OPSETS = st.sampled_from([7, 8, 9, 11, 13, 15, 17, 19, 20, 21, 23, 25, 26])


@settings(max_examples=examples(40), deadline=None)
@given(st.permutations([1, 2, 3]), st.permutations([1, 2, 3]), OPSETS, st.sampled_from(["N", 1]))
def test_transposes(first: list[int], second: list[int], opset: int, batch: int | str) -> None:
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, *first]),
        node("Relu", ["t"], ["r"]),
        node("Transpose", ["r"], ["y"], perm=[0, *second]),
    ]
    assert_agrees(flattened(nodes, (2, 3, 4), opset=opset, batch=batch))


@settings(max_examples=examples(50), deadline=None)
@given(
    st.sampled_from([(0, -1), (-1, 24), (0, 4, 6), (0, 0, -1), (0, 2, 3, 4, 1), (-1, 0, 12)]),
    st.sampled_from([9, 13, 14, 19, 21]),
    st.sampled_from(["N", 1]),
)
def test_reshape(target: tuple[int, ...], opset: int, batch: int | str) -> None:
    constants = {"s": np.array(target, np.int64)}
    assert_agrees(
        flattened([node("Reshape", ["x", "s"], ["y"])], (2, 3, 4), constants, opset=opset,
                  batch=batch)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("target", "batch"), [((1, -1), 1), ((1, 24), 1), ((1, 24), "N"), ((1, 4, 6), "N")]
)
def test_reshape_to_a_literal_batch_of_one(target: tuple[int, ...], batch: int | str) -> None:
    """Such a graph runs one sample at a time, whatever batch it declares, and says so."""
    constants = {"s": np.array(target, np.int64), "w": normal(0, 24, 3)}
    nodes = [
        node("Reshape", ["x", "s"], ["v"]),
        node("Flatten", ["v"], ["f"]),
        node("MatMul", ["f", "w"], ["y"]),
    ]
    data = flattened(nodes, (2, 3, 4), constants, batch=batch)
    assert_agrees(data, samples=3)
    assert read_onnx_bytes(data).batch == 1


@pytest.mark.parametrize("opset", [9, 13, 21])
@pytest.mark.parametrize("batch", ["N", 1])
def test_flatten_as_exporters_compute_it(opset: int, batch: int | str) -> None:
    """Shape, Gather, Unsqueeze, Concat, Reshape: the batch size is taken from the input."""
    axes = {"a": np.array([0], np.int64)} if opset >= 13 else {}
    constants = {"i": np.array(0, np.int64), "m": np.array(-1, np.int64), **axes}
    form: dict[str, Any] = {} if axes else {"axes": [0]}
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "i"], ["n"], axis=0),
        node("Unsqueeze", ["n", *axes], ["n1"], **form),
        node("Unsqueeze", ["m", *axes], ["m1"], **form),
        node("Concat", ["n1", "m1"], ["t"], axis=0),
        node("Reshape", ["x", "t"], ["y"]),
    ]
    assert_agrees(flattened(nodes, (2, 3, 4), constants, opset=opset, batch=batch), samples=3)


@pytest.mark.parametrize(
    "steps",
    [
        [node("Slice", ["c", "zero", "n"], ["k"]), node("Add", ["x", "k"], ["y"])],
        [
            node("Min", ["n", "two"], ["l"]),
            node("Cast", ["l"], ["k"], to=TensorProto.FLOAT),
            node("Mul", ["x", "k"], ["y"]),
        ],
        [
            node("Gather", ["c", "zero"], ["one"]),
            node("Expand", ["one", "n"], ["e"]),
            node("Shape", ["e"], ["l"]),
            node("Min", ["l", "two"], ["m"]),
            node("Cast", ["m"], ["k"], to=TensorProto.FLOAT),
            node("Mul", ["x", "k"], ["y"]),
        ],
        [
            node("Max", ["n", "two"], ["l"]),
            node("Concat", ["l", "two"], ["k"], axis=0),
            node("Reshape", ["x", "k"], ["y"]),
        ],
        [
            node("Cast", ["n"], ["l"], to=TensorProto.BOOL),
            node("Cast", ["l"], ["k"], to=TensorProto.FLOAT),
            node("Mul", ["x", "k"], ["y"]),
        ],
    ],
)
def test_what_is_computed_from_the_batch_size_is_refused(steps: list[NodeProto]) -> None:
    """At a batch of one it may be another number than at two large ones, where it is the same."""
    constants = {
        "zero": np.array([0], np.int64),
        "two": np.array([2], np.int64),
        "c": np.array([1, 2], np.float32),
    }
    nodes = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"], axis=0), *steps]
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(graph_of(nodes, (2,), constants).SerializeToString())
    assert "batch size" in caught.value.message


def test_flatten_as_keras_computes_it() -> None:
    """Shape, Slice, Cast, arithmetic on sizes, Concat, Reshape."""
    constants = {
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "end": np.array([4], np.int64),
    }
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Cast", ["s"], ["s32"], to=TensorProto.INT32),
        node("Cast", ["s32"], ["s64"], to=TensorProto.INT64),
        node("Slice", ["s64", "zero", "one", "zero", "one"], ["n"]),
        node("Slice", ["s64", "one", "end"], ["rest"]),
        node("ReduceProd", ["rest"], ["p"], keepdims=1, axes=[0]),
        node("Concat", ["n", "p"], ["t"], axis=0),
        node("Reshape", ["x", "t"], ["y"]),
    ]
    assert_agrees(flattened(nodes, (2, 3, 4), constants, opset=11), samples=3)


@pytest.mark.parametrize("opset", [9, 13])
def test_squeeze_and_unsqueeze(opset: int) -> None:
    constants = {"a": np.array([1, -1], np.int64)} if opset >= 13 else {}
    form: dict[str, Any] = {} if constants else {"axes": [1, 4]}
    nodes = [
        node("Unsqueeze", ["x", *constants], ["u"], **form),
        node("Relu", ["u"], ["r"]),
        node("Squeeze", ["r", *constants], ["y"], **({} if constants else {"axes": [1, -1]})),
    ]
    if opset < 11:
        nodes[2] = node("Squeeze", ["r"], ["y"], axes=[1, 4])
    assert_agrees(flattened(nodes, (3, 4), constants, opset=opset))


@pytest.mark.parametrize("opset", [11, 13])
def test_an_empty_list_of_axes_squeezes_all(opset: int) -> None:
    """ONNX Runtime takes it for none given: at [2, 1, 4] it leaves [2, 4], not [2, 1, 4]."""
    squeeze = node("Squeeze", ["x", "none"] if opset >= 13 else ["x"], ["y"])
    if opset < 13:
        none = helper.make_attribute("axes", [], attr_type=AttributeProto.INTS)
        squeeze.attribute.append(none)
    constants = {"none": np.zeros(0, np.int64)} if opset >= 13 else {}
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened([squeeze], (1, 4), constants, opset=opset, batch=2))
    assert caught.value.code == "batch_dependent"
