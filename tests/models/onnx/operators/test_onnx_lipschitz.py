"""Norms, sorted axes, pairs in order, blocks, transposed convolutions: import = ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, helper, numpy_helper

from models.errors import ModelError
from models.layers.activations import MaxMin
from models.layers.euclidean import L2Pool2d, Sort
from models.onnx.importer import import_onnx_bytes
from tests.extent import examples
from tests.models.differential.builder import Builder
from tests.models.differential.lipschitz import (
    conv_transpose,
    depth_to_space,
    lp_pool,
    ordered_pairs,
    prelu,
    root_of_squares,
    space_to_depth,
    top_k,
)
from tests.models.differential.steps import Step
from tests.models.onnx.graphs import assert_agrees, flattened, normal

node = helper.make_node
STEPS: dict[str, tuple[Step, tuple[int, ...]]] = {
    "conv_transpose": (conv_transpose, (4, 5, 6)),
    "depth_to_space": (depth_to_space, (8, 3, 2)),
    "lp_pool": (lp_pool, (3, 6, 7)),
    "ordered_pairs": (ordered_pairs, (4, 3, 2)),
    "ordered_features": (ordered_pairs, (6,)),
    "prelu": (prelu, (3, 4)),
    "root_of_squares": (root_of_squares, (3, 4, 5)),
    "space_to_depth": (space_to_depth, (3, 6, 6)),
    "top_k": (top_k, (5, 4)),
}
REFUSALS = (
    *("unsupported_operator", "batch_dependent", "invalid_network", "invalid_onnx"),
    "shape_mismatch",
)


@pytest.mark.parametrize("name", STEPS)
def test_what_is_not_refused_agrees(name: str) -> None:
    step, shape = STEPS[name]
    accepted = 0
    for seed in range(examples(12)):
        rng = np.random.default_rng(seed)
        opset = int(rng.integers(11, 22))
        builder = Builder(rng, shape, opset, "N")
        made = step(builder, "x", shape)
        constants = {t.name: numpy_helper.to_array(t) for t in builder.initializers}
        tail = node("Identity", [made], ["y"])
        data = flattened([*builder.nodes, tail], shape, constants, opset=opset)
        code = refusal(data)
        # One number alone is no network; the builder names axes twice, and makes other constants.
        assert code is None or code in REFUSALS
        if code is None:
            assert_agrees(data)
            accepted += 1
    assert accepted >= 3


def refusal(data: bytes) -> str | None:
    """The code with which the graph is refused, if it is."""
    try:
        import_onnx_bytes(data)
    except ModelError as error:
        return error.code
    return None


def kinds(nodes: list[NodeProto], shape: tuple[int, ...], **constants: Any) -> list[type]:
    network = assert_agrees(flattened(nodes, shape, constants))
    return [type(network.layer(row.name)) for row in network.nodes]


def test_pairs_and_both_signs_are_one_sorting_layer() -> None:
    split = node("Split", ["x"], ["a", "b"], axis=1)
    order = [node("Min", ["b", "a"], ["low"]), node("Max", ["a", "b"], ["high"])]
    joined = node("Concat", ["low", "high"], ["y"], axis=1)
    assert kinds([split, *order, joined], (6, 2)).count(MaxMin) == 1
    signs = [node("Relu", ["x"], ["p"]), node("Neg", ["x"], ["m"]), node("Relu", ["m"], ["n"])]
    for parts, axis in ((["p", "n"], 1), (["n", "p"], 2)):
        found = kinds([*signs, node("Concat", parts, ["y"], axis=axis)], (3, 4))
        assert found.count(MaxMin) == 1
    # Of other pairs nothing is known.
    other = [node("Relu", ["x"], ["p"]), node("Neg", ["p"], ["m"]), node("Relu", ["m"], ["n"])]
    assert MaxMin not in kinds([*other, node("Concat", ["p", "n"], ["y"], axis=1)], (3, 4))


def test_norms_are_one_layer_in_every_writing() -> None:
    two, half = np.float32(2), np.float32(0.5)
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    exported = [
        node("Pow", ["x", "two"], ["square"]),
        node("AveragePool", ["square"], ["mean"], **pool),
        node("Sign", ["mean"], ["sign"]),
        node("Abs", ["mean"], ["abs"]),
        node("Relu", ["abs"], ["relu"]),
        node("Mul", ["sign", "relu"], ["product"]),
        node("Mul", ["product", "four"], ["sum"]),
        node("Pow", ["sum", "half"], ["y"]),
    ]
    found = kinds(exported, (3, 4, 4), two=two, half=half, four=np.float32(4))
    assert found.count(L2Pool2d) == 1
    assert len(found) == 3
    assert kinds([node("LpPool", ["x"], ["y"], **pool)], (3, 4, 4)).count(L2Pool2d) == 1
    assert kinds([node("ReduceL2", ["x"], ["y"], axes=[1])], (3, 4)).count(L2Pool2d) == 1
    whole = node("TopK", ["x", "k"], ["y", "places"], axis=1, largest=0)
    assert kinds([whole], (5,), k=np.array([5])).count(Sort) == 1


#: Roots, but no norms: each operator by its own rules.
ROOTS: dict[str, list[NodeProto]] = {
    "a root of no squares": [node("Sqrt", ["x"], ["y"])],
    "a norm less a number": [
        node("Mul", ["x", "x"], ["s"]),
        node("Sub", ["s", "three"], ["d"]),
        node("Sqrt", ["d"], ["y"]),
    ],
    "a negative factor": [
        node("Mul", ["x", "x"], ["s"]),
        node("Mul", ["s", "minus"], ["d"]),
        node("Sqrt", ["d"], ["y"]),
    ],
    "a factor beyond all numbers": [
        node("Mul", ["x", "x"], ["s"]),
        node("Mul", ["s", "tiny"], ["d"]),
        node("Mul", ["d", "tiny"], ["e"]),
        node("Sqrt", ["e"], ["y"]),
    ],
}
REFUSED: dict[str, list[NodeProto]] = {
    "a power of an odd number": [node("Pow", ["x", "tiny"], ["y"])],
    "the norm of a batch": [node("ReduceL2", ["x"], ["y"], axes=[0], keepdims=1)],
    "a part of an axis": [node("TopK", ["x", "two"], ["y", "places"], axis=1)],
    "windows that overlap": [node("LpPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[1, 1])],
    "padded windows": [node("LpPool", ["x"], ["y"], kernel_shape=[2, 2], pads=[1, 1, 1, 1])],
    "another order": [node("LpPool", ["x"], ["y"], kernel_shape=[2, 2], p=3)],
    "a transposed convolution of a named size": [
        node("ConvTranspose", ["x", "w"], ["y"], output_shape=[9, 9])
    ],
    "blocks that do not fit": [node("SpaceToDepth", ["x"], ["y"], blocksize=3)],
}


@pytest.mark.parametrize("case", ROOTS)
def test_other_roots_are_no_norms(case: str) -> None:
    constants = {"three": np.float32(3), "minus": np.float32(-1), "tiny": np.float32(1e-30)}
    network = import_onnx_bytes(flattened(ROOTS[case], (3, 4, 4), constants))
    kinds = [network.layer(row.name).kind for row in network.nodes]
    assert "sqrt" in kinds
    assert "l2-pool2d" not in kinds


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_something_else_is_refused_by_name(case: str) -> None:
    constants = {
        "tiny": np.float32(1e-30),
        "two": np.array([2]),
        "w": normal(0, 3, 2, 2, 2),
    }
    used = {name for row in REFUSED[case] for name in row.input}
    kept = {name: value for name, value in constants.items() if name in used}
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened(REFUSED[case], (3, 4, 4), kept))
    assert caught.value.code in ("unsupported_operator", "batch_dependent")


@pytest.mark.parametrize("square", ["Mul", "Pow"])
def test_squares_may_be_turned_before_they_are_summed(square: str) -> None:
    """As TensorFlow pools images with their channels last (deel-lip's ScaledL2NormPooling2D)."""
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    squares = {"Mul": ["x", "x"], "Pow": ["x", "two"]}[square]
    nodes = [
        node(square, squares, ["q"]),
        node("Transpose", ["q"], ["t"], perm=[0, 3, 1, 2]),
        node("AveragePool", ["t"], ["a"], **pool),
        *(node("Sqrt", ["a"], ["r"]), node("Mul", ["r", "two"], ["y"])),
    ]
    data = flattened(nodes, (4, 6, 3), {"two": np.array(2, np.float32)})
    network = assert_agrees(data, samples=3)
    found = [network.layer(row.name).kind for row in network.nodes]
    assert "l2-pool2d" in found
    assert "sqrt" not in found
    # What is summed already, or moves the batch, is no such form.
    late = [
        node(square, squares, ["q"]),
        node("AveragePool", ["q"], ["a"], **pool),
        *(node("Transpose", ["a"], ["t"], perm=[0, 2, 3, 1]), node("Sqrt", ["t"], ["y"])),
    ]
    assert_agrees(flattened(late, (3, 4, 6), {"two": np.array(2, np.float32)}), samples=3)
