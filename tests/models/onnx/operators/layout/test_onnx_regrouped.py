"""Views in which heads, or places, share an axis with the batch: row by row, or refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, helper

from models.errors import ModelError
from models.onnx.forms.inner_values import refuse_other_values
from models.onnx.forms.plain import Asked
from models.onnx.importer import import_onnx_bytes, read_onnx_bytes
from tests.extent import examples
from tests.models.onnx.graphs import assert_agrees, flattened, graph_of, normal

node = helper.make_node


def attention_of(heads: int, places: int, size: int, *, shared: bool) -> list[NodeProto]:
    """torch's MultiheadAttention of x [batch, places, width]: heads beside the batch, or one axis
    with it all the way (``shared``), and behind it a Gemm of [places batch, width]."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        *(node("MatMul", ["t", "w"], ["m"]), node("Add", ["b", "m"], ["l"])),
        node("Reshape", ["l", "three"], ["three parts"]),
        node("Unsqueeze", ["three parts", "axis"], ["u"]),
        node("Transpose", ["u"], ["s"], perm=[3, 1, 2, 0, 4]),
        node("Squeeze", ["s", "fourth"], ["e"]),
    ]
    for place, name in enumerate("qkv"):
        nodes += [
            node("Gather", ["e", f"at {place}"], [f"g{name}"], axis=0),
            node("Reshape", [f"g{name}", "joined"], [f"j{name}"]),
            node("Transpose", [f"j{name}"], [f"r{name}"], perm=[1, 0, 2]),
        ]
        if not shared:
            nodes.append(node("Reshape", [f"r{name}", "heads"], [name]))
    q, k, v = ("rq", "rk", "rv") if shared else "qkv"
    turn = [0, 2, 1] if shared else [0, 1, 3, 2]
    back = [1, 0, 2] if shared else [2, 0, 1, 3]
    return [
        *nodes,
        *(node("Transpose", [k], ["kt"], perm=turn), node("MatMul", [q, "kt"], ["qk"])),
        *(node("Softmax", ["qk"], ["p"], axis=-1), node("MatMul", ["p", v], ["o"])),
        *(node("Transpose", ["o"], ["ot"], perm=back), node("Reshape", ["ot", "rows"], ["f"])),
        node("Gemm", ["f", "out", "c"], ["h"], transB=1),
        node("Reshape", ["h", "places"], ["i"]),
        node("Transpose", ["i"], ["y"], perm=[1, 0, 2]),
    ]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("batch", ["N", 1])
def test_heads_may_share_an_axis_with_the_batch(shared: bool, batch: str | int) -> None:
    heads, places, size = 2, 3, 2
    width = heads * size
    constants = {
        "w": normal(0, width, 3 * width),
        "b": normal(1, 3 * width),
        "three": np.array([places, -1, 3, width]),
        "axis": np.array([0]),
        "fourth": np.array([-2]),
        **{f"at {place}": np.array(place) for place in range(3)},
        "joined": np.array([places, -1, size]),
        "heads": np.array([-1, heads, places, size]),
        "rows": np.array([-1, width]),
        "out": normal(2, 4, width),
        "c": normal(3, 4),
        "places": np.array([places, -1, 4]),
    }
    nodes = attention_of(heads, places, size, shared=shared)
    used = {name for row in nodes for name in row.input}
    kept = {name: value for name, value in constants.items() if name in used}
    data = flattened(nodes, (places, width), kept, batch=batch, opset=18)
    assert_agrees(data, samples=3 if batch == "N" else 1, scale=0.3)


@pytest.mark.parametrize(
    ("sizes", "turned"),
    [
        # Of [3, batch, 4]: numbers of several rows on one place, or the batch in two axes.
        *(
            ([-1, 2], True),
            ([6, -1], True),
            ([2, -1, 6], True),
            ([-1, 3], True),
            ([4, -1, 3], True),
        ),
        # Of [3, 2 batch, 2], heads beside it: a row torn apart by other heads and places.
        *(([2, -1, 3], False), ([-1, 3, 4], False), ([3, 4, -1], False), ([4, 3, -1], False)),
    ],
)
def test_views_that_tear_rows_apart_are_refused(sizes: list[int], turned: bool) -> None:
    nodes = [node("Transpose", ["x"], ["t"], perm=[1, 0, 2])]
    if not turned:
        nodes.append(node("Reshape", ["t", "joined"], ["s"]))
    nodes.append(node("Reshape", ["t" if turned else "s", "sizes"], ["v"]))
    nodes += [node("Relu", ["v"], ["r"]), node("Reshape", ["r", "rows"], ["y"])]
    constants = {"sizes": np.array(sizes), "rows": np.array([-1, 3, 4])}
    if not turned:
        constants["joined"] = np.array([3, -1, 2])
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened(nodes, (3, 4), constants, opset=18))
    assert caught.value.code == "batch_dependent"


@pytest.mark.parametrize(
    "steps",
    [
        # 8 batch sizes where 4 are in it, by a factor that is 4 at two sizes only; half of them.
        [node("Mul", ["n", "eight"], ["k"])],
        [node("Min", ["n", "two"], ["m"]), node("Mul", ["n", "m"], ["k"])],
        [node("Mul", ["n", "n"], ["k"])],
        [node("Mul", ["n", "eight"], ["m"]), node("Div", ["m", "two"], ["k"])],
        [node("Max", ["n", "two"], ["m"]), node("Mul", ["m", "two"], ["k"])],
        [node("Concat", ["n", "n"], ["m"], axis=0), node("ReduceProd", ["m"], ["k"])],
        [node("Concat", ["n", "less"], ["m"], axis=0), node("ReduceProd", ["m"], ["k"])],
        [node("Concat", ["n", "eight"], ["m"], axis=0), node("ReduceProd", ["m"], ["k"])],
        [node("Mul", ["n", "none"], ["k"])],
        [node("Mul", ["n", "less"], ["k"])],
    ],
)
def test_sizes_that_are_other_multiples_of_the_batch_size_are_refused(
    steps: list[NodeProto],
) -> None:
    nodes = [
        node("Shape", ["x"], ["n"], start=0, end=1),
        *steps,
        node("Concat", ["k", "three"], ["sizes"], axis=0),
        *(node("Reshape", ["x", "sizes"], ["v"]), node("Relu", ["v"], ["r"])),
        node("Reshape", ["r", "rows"], ["y"]),
    ]
    numbers = {"eight": 8, "two": 2, "three": 3, "none": 0, "less": -4}
    constants = {name: np.array([value]) for name, value in numbers.items()}
    used = {name for row in nodes for name in row.input}
    constants = {name: value for name, value in constants.items() if name in used}
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(
            flattened(nodes, (4, 3), {**constants, "rows": np.array([-1, 4, 3])}, opset=18)
        )
    assert caught.value.code in ("batch_dependent", "shape_mismatch")


def test_sizes_as_tf2onnx_computes_them_of_an_einsum() -> None:
    """The product of batch and heads, and the larger one of two batch sizes that are one."""
    nodes = [
        *(node("Shape", ["x"], ["n"], start=0, end=1), node("Shape", ["x"], ["m"], start=0, end=1)),
        *(node("Shape", ["x"], ["two"], start=0, end=2), node("ReduceProd", ["two"], ["k"])),
        node("Concat", ["k", "three"], ["sizes"], axis=0),
        *(node("Reshape", ["x", "sizes"], ["v"]), node("Softmax", ["v"], ["r"], axis=1)),
        *(node("Max", ["n", "m"], ["b"]), node("Concat", ["b", "rest"], ["back"], axis=0)),
        node("Reshape", ["r", "back"], ["y"]),
    ]
    constants = {"three": np.array([3]), "rest": np.array([4, 3])}
    for samples in (1, 3):
        assert_agrees(flattened(nodes, (4, 3), constants, opset=18), samples=samples)


@pytest.mark.parametrize("behind", [[-1, 6], [-1, 6, 2]])
def test_a_batch_norm_of_places_that_are_rows_is_one_of_channels(behind: list[int]) -> None:
    """As LeViT has it: [batch places, channels]."""
    names = ("scale", "shift", "mean", "var")
    nodes = [
        node("Reshape", ["x", "rows"], ["r"]),
        node("BatchNormalization", ["r", *names], ["n"]),
        node("Reshape", ["n", "back"], ["y"]),
    ]
    constants = {name: np.abs(normal(at, 6)) + 0.1 for at, name in enumerate(names)}
    constants |= {"rows": np.array(behind), "back": np.array([-1, 5, *behind[1:]])}
    for samples in (1, 3):
        data = flattened(nodes, (5, *behind[1:]), constants)
        assert_agrees(data, samples=samples)


#: Sizes that the axes of a value are products of, in its order; 0 stands for the batch.
Atoms = list[list[int]]


def regrouped(random: np.random.Generator, axes: Atoms) -> Atoms:
    """The same numbers in the same order, cut into other axes."""
    atoms = [atom for axis in axes for atom in axis]
    most = min(int(random.integers(1, 4)), len(atoms) - 1)
    cuts = sorted(random.choice(range(1, len(atoms)), most, replace=False))
    ends = [0, *(int(cut) for cut in cuts), len(atoms)]
    return [atoms[start:end] for start, end in itertools.pairwise(ends)]


def computed(
    random: np.random.Generator, name: str, axes: Atoms, constants: dict[str, np.ndarray]
) -> list[NodeProto]:
    """The sizes of a view as torch's older exporter writes them: the batch, multiplied, among
    them; now and then by another number."""
    parts, nodes = [], [node("Shape", ["x"], [f"{name} of x"], start=0, end=1)]
    del constants[f"{name} sizes"]
    for place, axis in enumerate(axes):
        part = f"{name} part {place}"
        parts.append(part)
        times = math.prod(size for size in axis if size)
        if 0 not in axis:
            constants[part] = np.array([times])
            continue
        times += int(random.integers(16) == 0)
        constants[f"{name} times"] = np.array([times])
        nodes.append(node("Mul", [f"{name} of x", f"{name} times"], [part]))
    return [*nodes, node("Concat", parts, [f"{name} sizes"], axis=0)]


def chain(random: np.random.Generator) -> tuple[list[NodeProto], dict[str, np.ndarray], str]:
    """Transposes and views of [batch, 2, 6, 4], most of them such that rows stay apart."""
    axes: Atoms = [[0], [2], [2, 3], [2, 2]]
    nodes: list[NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    last = "x"
    for step in range(int(random.integers(2, 7))):
        name, kind = f"v{step}", int(random.integers(5))
        if kind == 0:
            axis = int(random.integers(len(axes)))
            size = math.prod(axes[-1])
            constants[f"{name} scale"] = np.ones(size or 1, np.float32)
            nodes.append(
                (
                    node("Tanh", [last], [name]),
                    node("Softmax", [last], [name], axis=axis),
                    node("LayerNormalization", [last, f"{name} scale"], [name], axis=-1),
                )[int(random.integers(3))]
            )
        elif kind <= 2:
            perm = random.permutation(len(axes)).tolist()
            axes = [axes[axis] for axis in perm]
            nodes.append(node("Transpose", [last], [name], perm=perm))
        else:
            axes = regrouped(random, axes)
            sizes = [-1 if 0 in axis else math.prod(axis) for axis in axes]
            if random.integers(8) == 0:
                random.shuffle(sizes)
                axes = [[0 if size == -1 else size] for size in sizes]
            constants[f"{name} sizes"] = np.array(sizes)
            if random.integers(2):
                nodes += computed(random, name, axes, constants)
            nodes.append(node("Reshape", [last, f"{name} sizes"], [name]))
        last = name
    # The batch in front again, alone where it can be.
    at = next(place for place, axis in enumerate(axes) if 0 in axis)
    perm = [at, *(place for place in range(len(axes)) if place != at)]
    nodes.append(node("Transpose", [last], ["front"], perm=perm))
    constants["rows"] = np.array([-1, 48])
    nodes += [node("Reshape", ["front", "rows"], ["whole"]), node("Relu", ["whole"], ["y"])]
    return nodes, constants, last


@given(st.integers(0, 10**6))
@settings(max_examples=examples(80), deadline=None)
def test_random_views_keep_rows_apart_or_are_refused(seed: int) -> None:
    """What is taken is what ONNX Runtime computes, and a row of a batch of any size is what it is
    alone."""
    random = np.random.default_rng(seed)
    nodes, constants, _ = chain(random)
    data = graph_of(nodes, (2, 6, 4), constants, opset=18).SerializeToString()
    try:
        imported = read_onnx_bytes(data, asked=Asked(classifier=False))
    except ModelError:
        return
    refuse_other_values(imported)
    x = random.standard_normal((7, 2, 6, 4)).astype(np.float32)
    with torch.no_grad():
        expected = imported.network(torch.from_numpy(x)).numpy()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for rows in (1, 2, 3, 7):
        (found,) = session.run(None, {"x": x[:rows]})
        # Of two numbers that are nearly alike a norm is bent by rounding.
        assert np.allclose(found.reshape(rows, -1), expected[:rows], atol=1e-3), nodes
