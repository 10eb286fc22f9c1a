"""Concat, Split, Slice, Gather, sums and means, Sum and Neg: import = ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from models.errors import ModelError
from models.onnx.importer import import_onnx_bytes
from models.onnx.safety import OnnxLimits
from tests.extent import examples
from tests.models.onnx.graphs import assert_agrees, flattened, normal

node = helper.make_node
OPSETS = st.sampled_from(range(7, 27))
BATCHES = st.sampled_from(["N", 1])
INT64_MAX = 2**63 - 1


@settings(max_examples=examples(60), deadline=None)
@given(
    OPSETS,
    st.integers(1, 3),
    st.booleans(),
    st.lists(st.sampled_from(["x", "r", "c", "d"]), min_size=1, max_size=5),
    BATCHES,
)
def test_concat(
    opset: int, axis: int, negative: bool, sources: list[str], batch: int | str
) -> None:
    """Of nodes and constants, in any order, along any axis but the batch."""
    sizes = {1: (2, 3, 4), 2: (2, 3, 4), 3: (2, 3, 4)}[axis]
    shapes = []
    for extra in (1, 2):
        shape = list(sizes)
        shape[axis - 1] = extra
        shapes.append(shape)
    constants = {"c": normal(0, 1, *shapes[0]), "d": normal(1, 1, *shapes[1])}
    if not {"x", "r"} & set(sources):
        sources = [*sources, "r"]
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Concat", sources, ["y"], axis=axis - 4 if negative and opset >= 11 else axis),
    ]
    assert_agrees(flattened(nodes, sizes, constants, opset=opset, batch=batch), samples=3)


def split_node(
    opset: int, axis: int, sizes: list[int], how: str
) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    names = [f"p{index}" for index in range(len(sizes))]
    if how == "equal":
        options = {"num_outputs": len(sizes)} if opset >= 18 else {}
        return node("Split", ["x"], names, axis=axis, **options), {}
    if opset < 13:
        return node("Split", ["x"], names, axis=axis, split=sizes), {}
    constants = {"sizes": np.array(sizes, np.int64)}
    return node("Split", ["x", "sizes"], names, axis=axis), constants


@settings(max_examples=examples(60), deadline=None)
@given(
    OPSETS,
    st.integers(1, 3),
    st.booleans(),
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.sampled_from(["given", "equal"]),
    st.data(),
)
def test_split(
    opset: int, axis: int, negative: bool, sizes: list[int], how: str, data: st.DataObject
) -> None:
    """Parts put together again in another order, one of them perhaps unused."""
    if how == "equal" and opset < 18:
        sizes = [sizes[0]] * len(sizes)
    elif how == "equal":
        last = data.draw(st.integers(1, max(sizes)))
        sizes = [max(sizes)] * (len(sizes) - 1) + [last]
    shape = [2, 3, 4]
    shape[axis - 1] = sum(sizes)
    made, constants = split_node(opset, axis - 4 if negative and opset >= 11 else axis, sizes, how)
    parts = data.draw(st.permutations(list(made.output)))
    kept = parts[: data.draw(st.integers(1, len(parts)))]
    nodes = [made, node("Concat", kept, ["y"], axis=axis)]
    assert_agrees(flattened(nodes, shape, constants, opset=opset), samples=3)


@settings(max_examples=examples(80), deadline=None)
@given(OPSETS, st.data(), BATCHES)
def test_slice(opset: int, data: st.DataObject, batch: int | str) -> None:
    shape = (5, 6, 3)
    axes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3, unique=True))
    starts, ends, steps = [], [], []
    for axis in axes:
        size = shape[axis - 1]
        start = data.draw(st.integers(-size - 2, size - 1))
        end = data.draw(st.sampled_from([*range(1, size + 1), *range(-size, 0), 2**31 - 1,
                                         INT64_MAX]))  # fmt: skip
        step = data.draw(st.integers(1, 4)) if opset >= 10 else 1
        if not range(size)[start:end:step]:
            start, end = -1, INT64_MAX
        starts.append(start)
        ends.append(end)
        steps.append(step)
    if opset >= 10 and data.draw(st.booleans()):
        axes = [axis - 4 for axis in axes]
    if opset < 10:
        made, constants = node("Slice", ["x"], ["y0"], axes=axes, starts=starts, ends=ends), {}
    else:
        values = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
        dtype = np.int64 if max(ends) >= 2**31 else data.draw(st.sampled_from([np.int32, np.int64]))
        constants = {key: np.array(value, dtype) for key, value in values.items()}
        if set(steps) == {1}:
            del constants["steps"]
        made = node("Slice", ["x", *constants], ["y0"])
    # The logits need two places: the whole input goes behind the slice's.
    flat = [node("Flatten", [name], [f"{name}f"]) for name in ("y0", "x")]
    nodes = [made, *flat, node("Concat", ["y0f", "xf"], ["y"], axis=1)]
    assert_agrees(flattened(nodes, shape, constants, opset=opset, batch=batch), samples=3)


def test_slices_that_leave_the_batch_whole() -> None:
    """Written for every axis, as some exporters do."""
    values = {"s": [0, 1], "e": [2**31 - 1, 3]}
    constants = {key: np.array(value, np.int64) for key, value in values.items()}
    assert_agrees(flattened([node("Slice", ["x", "s", "e"], ["y"])], (5, 4), constants))
    constants["e"][0] = 1
    data = flattened([node("Slice", ["x", "s", "e"], ["y"])], (5, 4), constants, batch=1)
    assert_agrees(data, samples=3)


@settings(max_examples=examples(40), deadline=None)
@given(
    OPSETS,
    st.sampled_from(
        [0, 2, -1, [1], [0, 1], [1, 3], [-4, -2], [0, 1, 2, 3], [3, 0], [2, 3, 1, 0]]
        + [[[1]], [[0, 1], [2, 3]], [[3, 1], [0, 2]], [[[2], [-1]]]]
    ),
    BATCHES,
)
def test_gather_of_places(opset: int, places: Any, batch: int | str) -> None:
    constants = {"i": np.array(places, np.int64)}
    made = node("Gather", ["x", "i"], ["y"], axis=2)
    assert_agrees(flattened([made], (3, 4, 2), constants, opset=opset, batch=batch), samples=3)


@pytest.mark.parametrize("opset", [10, 13, 21])
@pytest.mark.parametrize("kept", ["first", "second", "whole", "swapped", "cut short", "strided"])
def test_abs_of_the_first_channels_is_one_layer(opset: int, kept: str) -> None:
    """As a join of two parts, its slope would be sqrt(2)."""
    ends = {"first": (0, 3), "swapped": (3, 5), "cut short": (0, 2), "strided": (0, 3)}
    constants = {
        name: np.array([value], np.int64)
        for name, value in {"zero": 0, "two": 2, "three": 3, "five": 5, "one": 1}.items()
    }
    numbers = {0: "zero", 2: "two", 3: "three", 5: "five"}

    def cut(start: int, stop: int, name: str, step: str = "one") -> Any:
        return node("Slice", ["x", numbers[start], numbers[stop], "one", step], [name])

    first = cut(*ends.get(kept, (0, 3)), "first", "two" if kept == "strided" else "one")
    second = cut(0, 3, "second") if kept == "swapped" else cut(3, 5, "second")
    steps = [first, second, node("Abs", ["first"], ["size"])]
    steps.append(node("Concat", ["size", "second"], ["y"], axis=1))
    if kept == "second":
        steps[2:] = [
            node("Abs", ["second"], ["size"]),
            node("Concat", ["first", "size"], ["y"], axis=1),
        ]
    if kept == "whole":
        steps = [node("Abs", ["x"], ["y"])]
    data = flattened(steps, (5, 4), constants, opset=opset)
    assert_agrees(data, samples=3)
    network = import_onnx_bytes(data)
    kinds = [network.layer(row.name).kind for row in network.nodes]
    assert (kinds[0] == "abs") == (kept in ("first", "whole"))
    if kept == "first":
        assert network.layer(network.nodes[0].name).config() == {"channels": 3}


@settings(max_examples=examples(60), deadline=None)
@given(
    OPSETS,
    st.sampled_from(["ReduceMean", "ReduceSum"]),
    st.lists(st.integers(1, 3), min_size=1, max_size=3, unique=True),
    st.booleans(),
    st.sampled_from([None, 0, 1]),
    BATCHES,
)
def test_reductions(
    opset: int,
    op: str,
    axes: list[int],
    negative: bool,
    keepdims: int | None,
    batch: int | str,
) -> None:
    if negative and opset >= 11:
        axes = [axis - 4 for axis in axes]
    options: dict[str, Any] = {} if keepdims is None else {"keepdims": keepdims}
    constants: dict[str, Any] = {}
    if opset >= (13 if op == "ReduceSum" else 18):
        constants["axes"] = np.array(axes, np.int64)
    else:
        options["axes"] = axes
    made = node(op, ["x", *constants], ["r"], **options)
    shape = (3, 4, 5)
    flat = {"to": np.array([-1, 1], np.int64)} if keepdims == 0 and len(axes) == 3 else {}
    after = [node("Reshape", ["r", "to"], ["s"])] if flat else [node("Flatten", ["r"], ["s"])]
    constants |= {**flat, "w": normal(0, int(np.prod(_reduced(shape, axes))), 6)}
    nodes = [made, *after, node("MatMul", ["s", "w"], ["y"])]
    assert_agrees(flattened(nodes, shape, constants, opset=opset, batch=batch), samples=3)


def _reduced(shape: tuple[int, ...], axes: list[int]) -> list[int]:
    gone = {axis % 4 - 1 for axis in axes}
    return [size for axis, size in enumerate(shape) if axis not in gone]


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum"])
def test_reductions_over_nothing(op: str) -> None:
    constants = {"none": np.array([], np.int64)}
    made = node(op, ["x", "none"], ["y"], noop_with_empty_axes=1)
    assert_agrees(flattened([made], (3, 4), constants, opset=18))


@pytest.mark.parametrize("keepdims", [0, 1])
def test_the_mean_of_an_image_is_average_pooling(keepdims: int) -> None:
    made = node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=keepdims)
    network = assert_agrees(flattened([made], (3, 4, 5)))
    assert network.layer(network.nodes[0].name).kind == "avg-pool2d"


@settings(max_examples=examples(40), deadline=None)
@given(OPSETS, st.lists(st.sampled_from(["x", "r", "c", "n"]), min_size=1, max_size=5))
def test_sums_and_negation(opset: int, sources: list[str]) -> None:
    if opset < 8:  # nothing broadcasts yet
        sources = ["n" if source == "c" else source for source in sources]
    if "c" in sources:
        sources = [*(s for s in sources if s != "c"), "c"] if sources.count("c") > 1 else sources
        sources = ["r", *sources]
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Neg", ["r"], ["n"]),
        node("Sum", sources, ["s"]),
        node("Sub", ["c", "s"], ["y"]),
    ]
    assert_agrees(flattened(nodes, (3, 4), {"c": normal(0, 4)}, opset=opset), samples=3)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 4), 1), ((3, 4), -2), ((1, 1, 12), 3), ((1, 3, 4), 2), ((1, 1, 12), -2), ((1, 5), 2)],
)
def test_flatten(shape: tuple[int, ...], axis: int) -> None:
    """Axes before it hold one place each, beside the batch."""
    made = node("Flatten", ["x"], ["y"], axis=axis)
    assert_agrees(flattened([made], shape), samples=3)


I = {  # noqa: E741
    "zero": [0], "one": [1], "two": [2], "nine": [9], "minus": [-1], "pair": [0, 1], "bad": [0, 7],
    "three": [3], "halves": [2, 2], "odd": [3, 2], "empty": [4, 0],
}  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "code"),
    [
        ([node("Concat", ["x", "x"], ["y"], axis=0)], "batch_dependent"),
        ([node("Concat", ["x", "x"], ["y"], axis=3)], "shape_mismatch"),
        ([node("Relu", ["x"], ["q"]), node("Transpose", ["q"], ["t"], perm=[0, 2, 1]),
          node("Concat", ["x", "t"], ["y"], axis=1)], "shape_mismatch"),
        ([node("Flatten", ["x"], ["f"]), node("Concat", ["x", "f"], ["y"], axis=1)],
         "shape_mismatch"),
        ([node("Concat", ["x", "batch"], ["y"], axis=1)], "batch_dependent"),
        ([node("Concat", ["x", "narrow"], ["y"], axis=1)], "shape_mismatch"),
        ([node("Concat", ["nan", "x"], ["y"], axis=1)], "non_finite_weights"),
        ([node("Concat", ["x", "x"], ["y"])], "invalid_onnx"),
        ([node("Split", ["x"], ["y", "z"], axis=0, num_outputs=2)], "batch_dependent"),
        ([node("Split", ["x"], ["y", "z"])], "batch_dependent"),
        ([node("Split", ["x"], ["y", "z"], axis=1)], "invalid_onnx"),
        ([node("Split", ["x", "halves"], ["y", "z"], axis=1, num_outputs=2)], "invalid_onnx"),
        ([node("Split", ["x"], ["y", "z"], axis=1, num_outputs=3)], "invalid_onnx"),
        ([node("Split", ["x", "odd"], ["y", "z"], axis=1)], "shape_mismatch"),
        ([node("Split", ["x", "empty"], ["y", "z"], axis=1)], "shape_mismatch"),
        ([node("Split", ["x", "one"], ["y", "z"], axis=1)], "shape_mismatch"),
        ([node("Split", ["x", "halves"], ["y", "y"], axis=1)], "invalid_onnx"),
        ([node("Split", ["x", "halves"], ["y", "x"], axis=1)], "invalid_onnx"),
        ([node("Split", ["x"], ["y", "z", "a", "b", "c"], axis=1, num_outputs=5)],
         "shape_mismatch"),
        ([node("Slice", ["x", "zero", "one", "one", "minus"], ["y"])], "shape_mismatch"),
        ([node("Slice", ["x", "zero", "one", "one", "zero"], ["y"])], "invalid_onnx"),
        ([node("Slice", ["x", "zero", "one", "zero"], ["y"])], "batch_dependent"),
        ([node("Slice", ["x", "zero", "one", "nine"], ["y"])], "shape_mismatch"),
        ([node("Slice", ["x", "two", "one", "one"], ["y"])], "shape_mismatch"),
        ([node("Slice", ["x", "pair", "one", "one"], ["y"])], "invalid_onnx"),
        ([node("Slice", ["x", "pair", "halves", "pair"], ["y"])], "batch_dependent"),
        ([node("Slice", ["x", "zero", "real"], ["y"])], "invalid_onnx"),
        ([node("Slice", ["x", "zero", "x"], ["y"])], "unsupported_operator"),
        ([node("Slice", ["x", "pair", "halves", "ones"], ["y"])], "invalid_onnx"),
        ([node("Gather", ["x", "nine"], ["y"], axis=1)], "shape_mismatch"),
        ([node("Gather", ["x", "real"], ["y"], axis=1)], "invalid_onnx"),
        ([node("Gather", ["x", "zero"], ["y"], axis=0)], "batch_dependent"),
        ([node("ReduceMean", ["x"], ["y"])], "batch_dependent"),
        ([node("ReduceSum", ["x", "zero"], ["y"])], "batch_dependent"),
        ([node("ReduceSum", ["x", "ones"], ["y"])], "invalid_onnx"),
        ([node("ReduceSum", ["x", "nine"], ["y"])], "shape_mismatch"),
        ([node("ReduceSum", ["x"], ["y"], axes=[1])], "invalid_onnx"),
        ([node("ReduceSum", ["x", "one"], ["y"], keepdims=2)], "invalid_onnx"),
        ([node("ReduceMean", ["x", "one"], ["y"], noop_with_empty_axes=-1)], "invalid_onnx"),
        ([node("Concat", ["x", ""], ["y"], axis=1)], "invalid_onnx"),
        ([node("Sum", ["x", ""], ["y"])], "invalid_onnx"),
        ([node("Sum", ["narrow", "narrow", "x"], ["y"])], "unsupported_operator"),
        ([node("Neg", ["x", "x"], ["y"])], "invalid_onnx"),
    ],
)  # fmt: skip
def test_refused(nodes: list[Any], code: str) -> None:
    constants = {key: np.array(value, np.int64) for key, value in I.items()}
    constants |= {
        "ones": np.array([1, 1], np.int64),
        "batch": normal(0, 2, 4, 3),
        "narrow": normal(1, 1, 4, 2),
        "nan": np.full((1, 1, 3), np.nan, np.float32),
        "real": normal(2, 1),
    }
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened(nodes, (4, 3), constants, opset=18))
    assert caught.value.code == code, caught.value
    assert nodes[-1].op_type in str(caught.value)


def test_layers_are_limited() -> None:
    """A few nodes of a file may become many layers: one per part of a Split."""
    names = [f"p{index}" for index in range(64)]
    nodes = [node("Split", ["x"], [f"{n}_{k}" for n in names], axis=1) for k in range(4)]
    nodes.append(node("Add", [f"{names[0]}_0", f"{names[0]}_3"], ["s0"]))
    nodes += [node("Add", [f"s{k}", f"{names[0]}_{k + 1}"], [f"s{k + 1}"]) for k in range(2)]
    nodes.append(node("Relu", ["s2"], ["y"]))
    with pytest.raises(ModelError, match="layers") as caught:
        import_onnx_bytes(flattened(nodes, (64,)), OnnxLimits(layers=100))
    assert caught.value.code == "model_too_large"
