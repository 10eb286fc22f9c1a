"""No operator touches the batch axis, at any batch size: each in the forms that would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper

from models.errors import ModelError
from models.onnx.importer import read_onnx_bytes
from tests.models.onnx.graphs import assert_agrees, flattened, graph_of, normal

node = helper.make_node
CONSTANTS: dict[str, Any] = {
    "w": normal(0, 6, 6),
    "w3": normal(1, 2, 6, 6),
    "w4": normal(1, 1, 1, 6, 6),
    "row": normal(2, 1, 6),
    "rows": normal(3, 2, 6),
    "two": normal(4, 2, 4, 6),
    "part": normal(4, 2, 4, 6),
    "high": normal(5, 1, 1, 4, 6),
    "vector": normal(6, 4),
    "i0": np.array(0, np.int64),
    "zero": np.array([0], np.int64),
    "one": np.array([1], np.int64),
    "minus": np.array([-1], np.int64),
    "third": np.array([-3], np.int64),
    "end": np.array([2**62], np.int64),
    "halves": np.array([1, 1], np.int64),
    "none": np.array([], np.int64),
    "pads": np.array([1, 0, 0, 0, 0, 0], np.int64),
    **{
        name: np.array(target, np.int64)
        for name, target in {
            "s1": [1, 1, 1, -1], "s2": [1, -1], "s3": [-1, 6], "s4": [-1, 48], "s5": [2, -1],
            "s6": [4, -1, 6], "s7": [-1], "s8": [2, 4, 6], "s9": [1, 8, 6], "s10": [1, -1, 6],
            "s11": [0, -1, 0, 8], "s12": [-1, 5], "s13": [0, 4, -1, 12],
        }.items()
    },
}  # fmt: skip
SHAPE = [node("Shape", ["x"], ["shape"]), node("Gather", ["shape", "zero"], ["n"], axis=0)]


@pytest.mark.parametrize("name", ["s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10",
                                  "s12"])  # fmt: skip
@pytest.mark.parametrize("opset", [9, 14, 21])
def test_views_that_merge_or_take_apart_rows(name: str, opset: int) -> None:
    assert code_of([node("Reshape", ["x", name], ["y"])], opset=opset) == "batch_dependent"


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Flatten", ["x"], ["y"], axis=0)],
        [node("Flatten", ["x"], ["y"], axis=2)],
        [node("Flatten", ["x"], ["y"], axis=-1)],
        [node("Transpose", ["x"], ["y"])],
        [node("Transpose", ["x"], ["y"], perm=[1, 0, 2])],
        [node("Concat", ["x", "x"], ["y"], axis=0)],
        [node("Concat", ["x", "x"], ["y"], axis=-3)],
        [node("Concat", ["x", "part"], ["y"], axis=1)],
        [node("Gather", ["x", "zero"], ["y"], axis=0)],
        [node("Gather", ["x", "i0"], ["y"], axis=-3)],
        [node("Gather", ["x", "i0"], ["y"])],
        [node("Slice", ["x", "zero", "one"], ["y"])],
        [node("Slice", ["x", "zero", "one", "third"], ["y"])],
        [node("Slice", ["x", "one", "end", "zero"], ["y"])],
        [node("Slice", ["x", "minus", "end", "zero"], ["y"])],
        [node("Split", ["x"], ["y", "z"], axis=0)],
        [node("Split", ["x", "halves"], ["y", "z"], axis=-3)],
        [node("Squeeze", ["x"], ["y"])],
        [node("Squeeze", ["x", "zero"], ["y"])],
        [node("Squeeze", ["x", "third"], ["y"])],
        [node("Unsqueeze", ["x", "zero"], ["y"])],
        [node("ReduceSum", ["x"], ["y"])],
        [node("ReduceSum", ["x", "none"], ["y"])],
        [node("ReduceSum", ["x", "zero"], ["y"])],
        [node("ReduceSum", ["x", "third"], ["y"], keepdims=0)],
        [node("ReduceMean", ["x"], ["y"])],
        [node("ReduceMean", ["x"], ["y"], axes=[0])],
        [node("ReduceMean", ["x"], ["y"], axes=[-3, 1])],
        [node("Neg", ["x"], ["z"]), node("Softmax", ["z"], ["y"], axis=0)],
        [node("Neg", ["x"], ["z"]), node("LogSoftmax", ["z"], ["y"], axis=-3)],
        [node("Pad", ["x", "pads"], ["y"])],
        [node("MatMul", ["x", "w3"], ["y"])],
        [node("MatMul", ["x", "w4"], ["y"])],
        [node("MatMul", ["w3", "x"], ["y"])],
        [node("Flatten", ["x"], ["f"]), node("MatMul", ["rows", "f"], ["y"])],
        [node("ReduceSum", ["x", "one"], ["f"], keepdims=0), node("MatMul", ["f", "w3"], ["y"])],
        [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "f"], ["y"], transA=1)],
        [node("ReduceSum", ["x", "one"], ["f"], keepdims=0),
         node("Gemm", ["f", "w", "rows"], ["y"])],
        *([node(kind, ["x", name], ["y"])] for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min",
                                                         "Sum") for name in ("two", "high")),
        *([node(kind, ["two", "x"], ["y"])] for kind in ("Add", "Sub", "Mul", "Max", "Min", "Sum")),
        *([node("ReduceSum", ["x", "one"], ["f"], keepdims=0), node(kind, ["x", "f"], ["y"])]
          for kind in ("Add", "Sub", "Max", "Min", "Sum")),
        [*SHAPE, node("Cast", ["n"], ["k"], to=TensorProto.FLOAT), node("Mul", ["x", "k"], ["y"])],
        [*SHAPE, node("Max", ["n", "one"], ["m"]), node("Concat", ["m", "minus"], ["t"], axis=0),
         node("Reshape", ["x", "t"], ["y"])],
        [*SHAPE, node("Concat", ["minus", "n"], ["t"], axis=0), node("Reshape", ["x", "t"], ["y"])],
        [*SHAPE, node("Slice", ["vector", "zero", "n"], ["k"]), node("Add", ["x", "k"], ["y"])],
        [*SHAPE, node("Slice", ["x", "zero", "n", "one"], ["y"])],
        [*SHAPE, node("Slice", ["x", "zero", "n", "zero"], ["y"])],
        [*SHAPE, node("Expand", ["zero", "n"], ["k"]), node("ReduceProd", ["k"], ["p"]),
         node("Gather", ["x", "p"], ["y"], axis=1)],
    ],
)  # fmt: skip
def test_refused_whatever_the_batch(nodes: list[NodeProto]) -> None:
    assert code_of(nodes) == "batch_dependent"


def code_of(nodes: list[NodeProto], opset: int = 13) -> str:
    make = graph_of if nodes[-1].op_type.endswith("Softmax") else flattened
    data = make(nodes, (4, 6), CONSTANTS, opset=opset)
    with pytest.raises(ModelError) as caught:
        read_onnx_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    assert caught.value.hint
    return caught.value.code


@pytest.mark.parametrize(("batch", "claimed"), [("N", None), (1, 1)])
def test_the_batch_of_the_claim(batch: int | str, claimed: int | None) -> None:
    nodes = [node("Reshape", ["x", "s3"], ["y"])]
    constants = {"s3": np.array([-1, 24], np.int64)}
    assert read_onnx_bytes(flattened(nodes, (4, 6), constants, batch=batch)).batch == claimed


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Reshape", ["x", "literal"], ["y"])],
        [node("Concat", ["x", "part"], ["y"], axis=1)],
    ],
)
def test_what_runs_at_batch_one_only_says_so(nodes: list[NodeProto]) -> None:
    """ONNX Runtime refuses any other batch, whatever the file declares."""
    constants = {"literal": np.array([1, 24], np.int64), "part": normal(0, 1, 2, 6)}
    assert read_onnx_bytes(flattened(nodes, (4, 6), constants)).batch == 1
    assert read_onnx_bytes(flattened(nodes, (4, 6), constants, batch=1)).batch == 1


def test_a_view_of_everything_is_taken_where_the_file_runs_one_row() -> None:
    nodes = [node("Reshape", ["x", "s1"], ["y"])]
    assert read_onnx_bytes(flattened(nodes, (4, 6), CONSTANTS, batch=1)).batch == 1


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def rows_as(*rest: str) -> list[NodeProto]:
    """``e``, ``c`` in a shape with a row for each of the batch and the sizes ``rest`` behind it."""
    return [
        node("Shape", ["x"], ["n"], end=1),
        node("Concat", ["n", *rest], ["to"], axis=0),
        node("Expand", ["c", "to"], ["e"]),
    ]


#: Graphs that mean the same for one row, or one size of the batch, and other things for others.
AXES_THAT_APPEAR: dict[str, tuple[list[NodeProto], tuple[int, ...], dict[str, Any]]] = {
    "one number of more axes beside rows and places on one axis": (
        [
            node("Reshape", ["x", "to"], ["m"]),
            node("Mul", ["m", "c"], ["r"]),
            node("Shape", ["r"], ["n"], start=1, end=2),
            node("Cast", ["n"], ["places"], to=TensorProto.FLOAT),
            node("Mul", ["x", "places"], ["y"]),
        ],
        (2, 3),
        {"to": ints(-1, 3), "c": normal(0, 1, 1, 1)},
    ),
    "a choice between rows and columns": (
        [
            node("Greater", ["x", "zero"], ["above"]),
            node("Mul", ["x", "half"], ["m"]),
            node("Transpose", ["m"], ["t"], perm=[1, 0]),
            node("Where", ["above", "x", "t"], ["y"]),
        ],
        (3,),
        {"zero": np.float32(0), "half": np.float32(0.5)},
    ),
    "a choice of a Softplus of columns": (
        [
            node("Greater", ["x", "zero"], ["above"]),
            node("Softplus", ["x"], ["m"]),
            node("Transpose", ["m"], ["t"], perm=[1, 0]),
            node("Where", ["above", "x", "t"], ["w"]),
            node("Transpose", ["w"], ["y"], perm=[1, 0]),
        ],
        (3,),
        {"zero": np.float32(20)},
    ),
    "rows of the batch in front of which an axis stands": (
        [
            *rows_as("three"),
            node("Add", ["x", "e"], ["a"]),
            node("ReduceSum", ["a", "one"], ["y"], keepdims=0),
        ],
        (1, 3),
        {"c": normal(0, 1, 1, 3), "three": ints(3), "one": ints(1)},
    ),
    "rows of the batch in two ranks": (
        [
            *rows_as("three"),
            node("Concat", ["n", "one", "three"], ["too"], axis=0),
            node("Expand", ["c", "too"], ["g"]),
            node("Add", ["e", "g"], ["h"]),
            node("Add", ["x", "h"], ["a"]),
            node("ReduceSum", ["a", "one"], ["y"], keepdims=0),
        ],
        (1, 3),
        {"c": normal(0, 3), "three": ints(3), "one": ints(1)},
    ),
    "rows of the batch beside a sum of squares": (
        [
            *rows_as("one"),
            node("Mul", ["x", "x"], ["q"]),
            node("ReduceSum", ["q", "two"], ["sums"], keepdims=1),
            node("Mul", ["sums", "e"], ["scaled"]),
            node("Sqrt", ["scaled"], ["r"]),
            node("ReduceSum", ["r", "one"], ["s"], keepdims=0),
            node("MatMul", ["s", "w"], ["y"]),
        ],
        (1, 3),
        {"c": np.array([2], np.float32), "one": ints(1), "two": ints(2), "w": normal(0, 1, 3)},
    ),
}


@pytest.mark.parametrize("name", AXES_THAT_APPEAR)
def test_an_axis_as_long_as_the_batch_never_appears(name: str) -> None:
    """Such an axis is summed, or counted, or beside another row's."""
    nodes, shape, constants = AXES_THAT_APPEAR[name]
    with pytest.raises(ModelError) as caught:
        read_onnx_bytes(flattened(nodes, shape, constants, opset=15))
    assert caught.value.code == "batch_dependent"


def test_one_row_squeezed_away_behind_another_axis() -> None:
    """[1, 1 (the batch), 3] without its second axis is [1, 3] in the file, a batch of one row."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("Squeeze", ["t", "one"], ["q"]),
        node("Shape", ["q"], ["n"], start=0, end=1),
        node("Cast", ["n"], ["rows"], to=TensorProto.FLOAT),
        node("Mul", ["x", "rows"], ["y"]),
    ]
    assert_agrees(flattened(nodes, (1, 3), {"one": ints(1)}, opset=15, batch=1))
