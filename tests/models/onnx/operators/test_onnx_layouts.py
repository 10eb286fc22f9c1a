"""The batch axis elsewhere for a while, constants of as many rows as the batch, axes that grow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper

from models.errors import ModelError
from models.onnx.importer import import_onnx_bytes
from tests.extent import examples
from tests.models.onnx.graphs import assert_agrees, flattened, graph_of, normal

node = helper.make_node


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def refused(data: bytes) -> ModelError:
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(data)
    return caught.value


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("opset", [11, 13, 18, 21])
def test_an_ensemble_is_stacked_in_front_of_its_mean(kind: str, opset: int) -> None:
    """torch.stack([...]).mean(0)."""
    since = {"Unsqueeze": 13, kind: 13 if kind == "ReduceSum" else 18}
    constants = {"front": ints(0), **{f"w{index}": normal(index, 4, 3) for index in range(3)}}
    nodes: list[NodeProto] = []

    def over_front(operator: str, source: str, target: str, **more: Any) -> None:
        if opset >= since[operator]:
            nodes.append(node(operator, [source, "front"], [target], **more))
        else:
            nodes.append(node(operator, [source], [target], axes=[0], **more))

    for index in range(3):
        nodes.append(node("MatMul", ["x", f"w{index}"], [f"m{index}"]))
        over_front("Unsqueeze", f"m{index}", f"u{index}")
    nodes.append(node("Concat", ["u0", "u1", "u2"], ["stacked"], axis=0))
    over_front(kind, "stacked", "y", keepdims=0)
    used = {name for row in nodes for name in row.input}
    kept = {name: value for name, value in constants.items() if name in used}
    assert_agrees(flattened(nodes, (4,), kept, opset=opset), samples=3)


def test_steps_of_a_sequence_in_front() -> None:
    """Each step by itself, and all of them again as [batch, step, feature]."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        *(node("Gather", ["t", f"k{k}"], [f"g{k}"], axis=0) for k in range(3)),
        *(node("MatMul", [f"g{k}", "w"], [f"m{k}"]) for k in range(3)),
        *(node("Unsqueeze", [f"m{k}", "front"], [f"u{k}"]) for k in range(3)),
        node("Concat", ["u0", "u1", "u2"], ["c"], axis=0),
        node("Add", ["c", "bias"], ["b"]),
        node("Relu", ["b"], ["r"]),
        node("Transpose", ["r"], ["y"], perm=[1, 0, 2]),
    ]
    constants = {
        **{f"k{k}": np.array(k, np.int64) for k in range(3)},
        "front": ints(0),
        "w": normal(0, 4, 5),
        "bias": normal(1, 3, 1, 5),
    }
    assert_agrees(flattened(nodes, (3, 4), constants), samples=3)
    assert_agrees(flattened(nodes, (3, 4), constants, batch=1), samples=3)
    constants["bias"] = normal(1, 3, 2, 5)
    assert refused(flattened(nodes, (3, 4), constants)).code == "batch_dependent"


@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_the_batch_axis_may_wander(data: st.DataObject) -> None:
    """Operators one after another while the batch axis is anywhere, and back to the front."""
    opset = data.draw(st.sampled_from([11, 13, 18, 21]))
    constants: dict[str, Any] = {}
    nodes: list[NodeProto] = []
    # Sizes as the file has them; None is the batch.
    sizes: list[int | None] = [None, 3, 4, 2]
    last = "x"

    def axes_of(operator: str, axes: list[int], since: int, **more: Any) -> NodeProto:
        if opset < since:
            return node(operator, [last], [name], axes=axes, **more)
        constants[f"{name}_axes"] = ints(*axes)
        return node(operator, [last, f"{name}_axes"], [name], **more)

    for index in range(data.draw(st.integers(1, 5))):
        name, rank = f"h{index}", len(sizes)
        others = [axis for axis, size in enumerate(sizes) if size is not None]
        axis = data.draw(st.sampled_from(others))
        written = axis - data.draw(st.sampled_from([0, rank]))
        size = sizes[axis] or 1
        kind = data.draw(
            st.sampled_from(["turn", "more", "less", "add", "cat", "cut", "mean", "at"])
        )
        if kind == "turn":
            perm = data.draw(st.permutations(range(rank)))
            nodes.append(node("Transpose", [last], [name], perm=perm))
            sizes = [sizes[place] for place in perm]
        elif kind == "more" and rank < 6:
            place = data.draw(st.integers(0, rank))
            nodes.append(axes_of("Unsqueeze", [place], 13))
            sizes.insert(place, 1)
        elif kind == "less" and size == 1 and rank > 2:
            nodes.append(axes_of("Squeeze", [written], 13))
            del sizes[axis]
        elif kind == "add":
            constants[name + "_c"] = normal(index, *(size or 1 for size in sizes))
            nodes.append(node("Add", [last, name + "_c"], [name]))
        elif kind == "cat":
            nodes.append(node("Concat", [last, last], [name], axis=written))
            sizes[axis] = 2 * size
        elif kind == "cut" and size > 1:
            constants |= {
                f"{name}_{k}": ints(v) for k, v in (("s", 1), ("e", size), ("a", written))
            }
            nodes.append(node("Slice", [last, f"{name}_s", f"{name}_e", f"{name}_a"], [name]))
            sizes[axis] = size - 1
        elif kind == "mean":
            keepdims = data.draw(st.integers(0, 1)) if rank > 2 else 1
            nodes.append(axes_of("ReduceMean", [written], 18, keepdims=keepdims))
            sizes[axis : axis + 1] = [1] if keepdims else []
        elif kind == "at":
            places = data.draw(st.sampled_from([ints(size - 1), np.array(0, np.int64)]))
            places = places if rank > 2 else ints(0)
            constants[name + "_p"] = places
            nodes.append(node("Gather", [last, name + "_p"], [name], axis=written))
            sizes[axis : axis + 1] = [1] * places.ndim
        else:
            nodes.append(node("Relu", [last], [name]))
        last = name
    assume(math.prod(size for size in sizes if size is not None) > 1)
    at = sizes.index(None)
    back = [at, *(axis for axis in range(len(sizes)) if axis != at)]
    nodes.append(node("Transpose", [last], ["y"], perm=back))
    assert_agrees(flattened(nodes, (3, 4, 2), constants, opset=opset), samples=3)


def test_rows_and_places_on_one_axis_for_a_while() -> None:
    """Dense on [batch, 3, 2, 4] as TensorFlow's Tensordot is written, twice in a row."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "free"], ["kept"], axis=0),
        node("Concat", ["kept", "five"], ["wanted"], axis=0),
        node("Reshape", ["x", "rows of 4"], ["r"]),
        node("MatMul", ["r", "w"], ["m"]),
        node("Add", ["m", "bias"], ["b"]),
        node("Relu", ["b"], ["a"]),
        node("Mul", ["a", "b"], ["p"]),
        node("Reshape", ["p", "wanted"], ["y"]),
    ]
    constants = {
        "free": ints(0, 1, 2),
        "five": ints(5),
        "rows of 4": ints(-1, 4),
        "w": normal(0, 4, 5),
        "bias": normal(1, 1, 5),
    }
    assert_agrees(flattened(nodes, (3, 2, 4), constants), samples=3)
    nodes[-1] = node("Reshape", ["p", "whole"], ["y"])
    more = {**constants, "whole": ints(-1, 30)}
    used = {name: value for name, value in more.items() if name not in ("free", "five")}
    assert_agrees(flattened(nodes[3:], (3, 2, 4), used), samples=3)


@pytest.mark.parametrize(
    "made",
    [
        [node("Softmax", ["r"], ["y"])],
        [node("Transpose", ["r"], ["y"], perm=[1, 0])],
        [node("Add", ["r", "rows"], ["y"])],
        [node("Add", ["r", "x"], ["y"])],
        [node("Reshape", ["r", "copied"], ["y"])],
        [node("Reshape", ["r", "others"], ["y"])],
        [node("ReduceMean", ["r"], ["y"], axes=[0])],
        [node("Identity", ["r"], ["y"])],
    ],
)
def test_rows_and_places_that_are_mixed_are_refused(made: list[NodeProto]) -> None:
    constants = {"rows of 4": ints(-1, 4), "rows": normal(0, 3, 4), "copied": ints(0, 3, 4),
                 "others": ints(-1, 5)}  # fmt: skip
    used = {"rows of 4", *(name for row in made for name in row.input)}
    kept = {name: value for name, value in constants.items() if name in used}
    merged = node("Reshape", ["x", "rows of 4"], ["r"])
    found = refused(flattened([merged, *made], (3, 4), kept))
    assert found.code in ("batch_dependent", "unsupported_operator", "shape_mismatch")


@pytest.mark.parametrize("repeats", [(1, 2, 1, 3), (1, 1, 4, 1), (1, 1, 1, 1)])
def test_axes_repeated_as_a_whole(repeats: tuple[int, ...]) -> None:
    made = node("Tile", ["x", "r"], ["y"])
    assert_agrees(flattened([made], (3, 1, 2), {"r": ints(*repeats)}), samples=3)
    assert refused(flattened([made], (3, 1, 2), {"r": ints(2, 1, 1, 1)})).code == "batch_dependent"


def test_rows_that_meet_while_the_batch_is_elsewhere_are_refused() -> None:
    turned = node("Transpose", ["x"], ["t"], perm=[1, 0, 2])
    constants = {"c": normal(0, 3, 2, 4), "w": normal(1, 4, 4), "one": ints(1), "s": ints(-1, 4)}
    for made in (
        node("ReduceMean", ["t"], ["y"], axes=[1]),
        node("Gather", ["t", "one"], ["y"], axis=1),
        node("Concat", ["t", "t"], ["y"], axis=1),
        node("Add", ["t", "x"], ["y"]),
        node("Add", ["t", "c"], ["y"]),
        node("Reshape", ["t", "s"], ["y"]),
        node("MatMul", ["w", "t"], ["y"]),
        node("Identity", ["t"], ["y"]),
    ):
        used = {name: value for name, value in constants.items() if name in made.input}
        found = refused(flattened([turned, made], (3, 4), used))
        assert found.code in ("batch_dependent", "unsupported_operator"), made
    last = [node("MatMul", ["x", "w"], ["m"]), node("Transpose", ["m"], ["y"], perm=[1, 0])]
    for batch in ("N", 1):
        # With one row too: a Softmax at the end may be over the rows.
        ends = [*last, node("Softmax", ["y"], ["p"], axis=-1)]
        for nodes, output in ((last, "y"), (ends, "p")):
            model = graph_of(nodes, (4,), {"w": constants["w"]}, batch=batch, output=output)
            assert refused(model.SerializeToString()).code == "batch_dependent"


def expanded(target: str, *sizes: int) -> tuple[list[NodeProto], dict[str, Any]]:
    """[batch, *sizes] as exporters write it; -1 stands for what is there already."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "first"], ["batch"]),
        node("Concat", ["batch", "rest"], ["wanted"], axis=0),
        node("Shape", ["wanted"], ["count"]),
        node("ConstantOfShape", ["count"], ["ones"],
             value=helper.make_tensor("v", TensorProto.INT64, [1], [1])),
        node("Mul", ["ones", "minus"], ["open"]),
        node("Equal", ["wanted", "open"], ["is open"]),
        node("Where", ["is open", "ones", "wanted"], [target]),
    ]  # fmt: skip
    return nodes, {"first": ints(0), "rest": ints(*sizes), "minus": np.array(-1, np.int64)}


def test_a_constant_of_as_many_rows_as_the_batch_is_one_row() -> None:
    """torch: grid.expand(x.size(0), -1, -1), beside x or added to it."""
    nodes, constants = expanded("sizes", -1, 4)
    constants["grid"] = normal(0, 1, 2, 4)
    rows = [
        *nodes,
        node("Expand", ["grid", "sizes"], ["rows"]),
        node("Neg", ["rows"], ["negative"]),
    ]
    beside = node("Concat", ["x", "negative"], ["y"], axis=1)
    network = assert_agrees(flattened([*rows, beside], (3, 4), constants), samples=3)
    assert network.input_shape == (3, 4)
    constants["grid"] = normal(0, 3, 4)
    assert_agrees(flattened([*rows, node("Sub", ["x", "negative"], ["y"])], (3, 4), constants))
    zeros = [
        node("Shape", ["x"], ["s"]),
        node("ConstantOfShape", ["s"], ["z"]),
        node("Max", ["x", "z"], ["y"]),
    ]
    network = assert_agrees(flattened(zeros, (3, 4)), samples=3)
    assert network.layer(network.nodes[0].name).kind == "relu"


def test_a_recurrent_layer_begins_with_zeros_for_each_row() -> None:
    """Two steps of tanh(x w + h u), h at first zeros of as many rows as the batch."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Slice", ["s", "none", "one"], ["batch"]),
        node("Concat", ["batch", "units"], ["wanted"], axis=0),
        node("ConstantOfShape", ["wanted"], ["h"]),
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("MatMul", ["t", "w"], ["xw"]),
    ]
    state = "h"
    for step in range(2):
        nodes += [
            node("Gather", ["xw", f"k{step}"], [f"x{step}"], axis=0),
            node("MatMul", [state, "u"], [f"m{step}"]),
            node("Add", [f"x{step}", f"m{step}"], [f"a{step}"]),
            node("Tanh", [f"a{step}"], [f"h{step}"]),
        ]
        state = f"h{step}"
    nodes.append(node("Identity", [state], ["y"]))
    constants = {
        "none": ints(0),
        "one": ints(1),
        "units": ints(5),
        "w": normal(0, 3, 5),
        "u": normal(1, 5, 5),
        "k0": np.array(0, np.int64),
        "k1": np.array(1, np.int64),
    }
    assert_agrees(flattened(nodes, (2, 3), constants), samples=3)
    constants["u"] = constants["u"] * np.float32(np.inf)
    with pytest.raises(ModelError):
        import_onnx_bytes(flattened(nodes, (2, 3), constants))


def test_rows_of_such_a_constant_are_not_mixed() -> None:
    nodes, constants = expanded("sizes", 3, 4)
    constants |= {"grid": normal(0, 3, 4), "axes": ints(0), "flat": ints(-1, 4)}
    rows = [*nodes, node("Expand", ["grid", "sizes"], ["rows"])]
    for made in (
        [node("Concat", ["x", "rows"], ["y"], axis=0)],
        [node("Reshape", ["rows", "flat"], ["r"]), node("Add", ["x", "r"], ["y"])],
        [node("Transpose", ["rows"], ["r"], perm=[1, 0, 2]), node("Add", ["x", "r"], ["y"])],
        [node("Unsqueeze", ["x", "axes"], ["u"]), node("Add", ["u", "rows"], ["y"])],
        [node("Conv", ["x", "rows"], ["y"])],
        [node("MatMul", ["x", "rows"], ["y"])],
        [node("PRelu", ["x", "rows"], ["y"])],
    ):
        used = {name for row in [*rows, *made] for name in row.input}
        kept = {name: value for name, value in constants.items() if name in used}
        found = refused(flattened([*rows, *made], (3, 4), kept))
        assert found.code in ("batch_dependent", "invalid_onnx"), (made, found)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
def test_a_constant_may_make_an_axis_longer(kind: str) -> None:
    """Distances to five prototypes: x[:, None] - p."""
    nodes = [node("Unsqueeze", ["x", "one"], ["u"]), node(kind, ["u", "p"], ["y"])]
    constants = {"one": ints(1), "p": normal(0, 5, 4) + np.float32(3)}
    assert_agrees(flattened(nodes, (4,), constants), samples=3)


@pytest.mark.parametrize("start", [-1, 2, 3, 9, -3, -9, 0, 2**31 - 1, 2**63 - 1])
@pytest.mark.parametrize("end", [-4, -9, -(2**63), 0, -1])
@pytest.mark.parametrize("step", [-1, -2, -3])
def test_slices_backwards(start: int, end: int, step: int) -> None:
    nodes = [node("Slice", ["x", "s", "e", "a", "t"], ["y"])]
    constants = {"s": ints(start), "e": ints(end), "a": ints(1), "t": ints(step)}
    data = flattened(nodes, (3, 2), constants)
    first = max(start, -3) % 3 if start < 3 else 2
    if not range(first, end + 3 if -4 < end < 0 else max(end, -1), step):
        assert refused(data).code == "shape_mismatch"
    else:
        assert_agrees(data)


@pytest.mark.parametrize("pads", [(-1, -2, -1, 0), (1, -1, -2, 3), (0, 0, -1, 0), (-3, 1, 0, 0)])
@pytest.mark.parametrize("opset", [9, 13])
def test_negative_pads_cut(pads: tuple[int, ...], opset: int) -> None:
    top, left, bottom, right = pads
    amounts = [0, 0, top, left, 0, 0, bottom, right]
    constants = {} if opset < 11 else {"pads": ints(*amounts), "v": np.array(0.5, np.float32)}
    made = node("Pad", ["x", *constants], ["y"], **({} if constants else {"pads": amounts}))
    assert_agrees(flattened([made], (2, 4, 5), constants, opset=opset))
