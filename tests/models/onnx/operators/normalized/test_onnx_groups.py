"""Instance and group normalisation, and normalisation written in parts: ONNX Runtime agrees, and
what is only nearly one is refused."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, helper
from torch import nn

from models.errors import ModelError
from models.layers.normalization import Standardize
from models.network import Network
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.onnx.graphs import Array, assert_agrees, flattened, graph_of, normal

node = helper.make_node
NUMBERS: dict[str, Array] = {
    "two": np.array(2.0, np.float32),
    "one": np.array(1.0, np.float32),
    "eps": np.array(1e-3, np.float32),
    "none": np.array(0.0, np.float32),
}


def kinds(network: Network) -> list[str]:
    return [network.layer(row.name).kind for row in network.nodes]


def refused(data: bytes) -> ModelError:
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(data)
    return caught.value


def affine(*shape: int) -> dict[str, Array]:
    return {"scale": normal(1, *shape), "shift": normal(2, *shape)}


def instance(shape: tuple[int, ...], opset: int = 13, **attributes: Any) -> bytes:
    nodes = [node("InstanceNormalization", ["x", "scale", "shift"], ["y"], **attributes)]
    return flattened(nodes, shape, affine(shape[0]), opset=opset)


def group(
    shape: tuple[int, ...], groups: int, opset: int, size: int | None = None, **attributes: Any
) -> bytes:
    nodes = [
        node("GroupNormalization", ["x", "scale", "shift"], ["y"], num_groups=groups, **attributes)
    ]
    size = (groups if opset < 21 else shape[0]) if size is None else size
    return flattened(nodes, shape, affine(size), opset=opset)


@pytest.mark.parametrize("opset", [7, 9, 13, 22, 26])
@pytest.mark.parametrize("shape", [(3, 5), (4, 3, 2), (1, 4), (2, 2, 2, 2)])
def test_each_channel_is_normalised_by_itself(shape: tuple[int, ...], opset: int) -> None:
    network = assert_agrees(instance(shape, opset, epsilon=1e-3), samples=4)
    assert kinds(network)[:4] == ["centre", "standardize", "multiply", "shift"]
    # The variance is computed from what was there before the mean went.
    assert network.nodes[1].inputs == (network.nodes[0].name, "input")


@pytest.mark.parametrize("opset", [18, 20, 21, 26])
@pytest.mark.parametrize(
    ("shape", "groups"), [((6, 4), 3), ((4, 3, 2), 2), ((4, 2, 2), 1), ((6,), 2), ((3, 5), 3)]
)
def test_groups_have_a_scale_each_or_their_channels_have(
    shape: tuple[int, ...], groups: int, opset: int
) -> None:
    network = assert_agrees(group(shape, groups, opset), samples=4)
    assert "standardize" in kinds(network)


def test_a_row_of_a_batch_does_not_change_another_ones_answer() -> None:
    for data in (instance((3, 4, 2)), group((4, 3, 2), 2, 21), group((4, 3, 2), 2, 18)):
        shape = import_onnx_bytes(data).input_shape
        run, x = OnnxRuntimeModel(data, shape), normal(7, 3, *shape)
        assert np.array_equal(run(x)[1:2], run(x[1:2]))
        assert import_onnx_bytes(data)(torch.from_numpy(x))[1].allclose(
            import_onnx_bytes(data)(torch.from_numpy(x[1:2]))[0], atol=1e-6
        )


@pytest.mark.parametrize("opset", [18, 21])
def test_scales_that_fit_the_other_opset_are_refused(opset: int) -> None:
    other = 4 if opset == 18 else 2
    assert refused(group((4, 3), 2, opset, size=other)).code == "shape_mismatch"
    assert refused(group((4, 3), 2, opset, size=1)).code == "shape_mismatch"


def test_what_has_no_bound_is_refused_by_its_reason() -> None:
    for data in (
        instance((3, 4), epsilon=0.0),
        instance((3, 4), epsilon=-1.0),
        instance((3, 4), epsilon=1e-40),
        group((4, 3), 2, 21, epsilon=0.0),
    ):
        assert "epsilon" in str(refused(data))
    assert "single numbers" in str(refused(instance((3, 1, 1))))
    assert "single numbers" in str(refused(group((4,), 4, 21)))
    assert "rank" in str(refused(instance((3,))))
    assert "stash_type" in str(refused(group((4, 3), 2, 21, stash_type=11)))
    assert refused(group((4, 3), 3, 21)).code == "shape_mismatch"
    for scale, shift in ((1e-30, 0.0), (1e20, 0.0), (1.0, 1e35)):
        constants = {"scale": np.full(3, scale, np.float32), "shift": np.full(3, shift, np.float32)}
        nodes = [node("InstanceNormalization", ["x", "scale", "shift"], ["y"])]
        assert "normalisation is too" in str(refused(flattened(nodes, (3, 4), constants)))
    # Without a batch axis ONNX Runtime would take the first axis of the sample for it.
    nodes = [
        node("Reshape", ["x", "lines"], ["l"]),
        node("InstanceNormalization", ["l", "scale", "shift"], ["n"]),
        node("Reshape", ["n", "flat"], ["y"]),
    ]
    shapes = {"lines": np.array([3, 2, 2]), "flat": np.array([12])}
    model = graph_of(nodes, (12,), {**affine(2), **shapes})
    del model.graph.input[0].type.tensor_type.shape.dim[0]
    assert "batch axis" in str(refused(model.SerializeToString()))


def variance(*, of_squares: bool, axes: list[int]) -> list[NodeProto]:
    """Nodes to v = variance + eps and the mean m of x."""
    m = node("ReduceMean", ["x"], ["m"], axes=axes, keepdims=1)
    if of_squares:
        return [
            *(m, node("Mul", ["x", "x"], ["s"])),
            node("ReduceMean", ["s"], ["q"], axes=axes, keepdims=1),
            node("Mul", ["m", "m"], ["mm"]),
            *(node("Sub", ["q", "mm"], ["var"]), node("Add", ["var", "eps"], ["v"])),
        ]
    return [
        *(m, node("Sub", ["x", "m"], ["d"]), node("Mul", ["d", "d"], ["s"])),
        node("ReduceMean", ["s"], ["var"], axes=axes, keepdims=1),
        node("Add", ["var", "eps"], ["v"]),
    ]


#: c = gain / s in several ways, and x c + (bias - m c) in several ways.
FACTORS = {
    "quotient": [node("Div", ["one", "r"], ["i"]), node("Mul", ["i", "gain"], ["c"])],
    "reciprocal": [node("Reciprocal", ["r"], ["i"]), node("Mul", ["gain", "i"], ["c"])],
    "gain over root": [node("Div", ["gain", "r"], ["c"])],
}
ENDS = {
    "keras": [
        *(node("Neg", ["m"], ["n"]), node("Mul", ["n", "c"], ["o"])),
        *(node("Add", ["o", "bias"], ["b"]), node("Mul", ["x", "c"], ["p"])),
        node("Add", ["p", "b"], ["y"]),
    ],
    "tensorflow": [
        *(node("Mul", ["x", "c"], ["p"]), node("Mul", ["m", "c"], ["o"])),
        *(node("Sub", ["bias", "o"], ["b"]), node("Add", ["b", "p"], ["y"])),
    ],
    "bias last": [
        *(node("Mul", ["c", "x"], ["p"]), node("Mul", ["c", "m"], ["o"])),
        *(node("Sub", ["p", "o"], ["z"]), node("Add", ["z", "bias"], ["y"])),
    ],
    "numbers less their mean": [
        *(node("Sub", ["x", "m"], ["e"]), node("Mul", ["e", "c"], ["z"])),
        node("Add", ["z", "bias"], ["y"]),
    ],
}
ROOT = node("Sqrt", ["v"], ["r"])


def gained(*shape: int) -> Mapping[str, Array]:
    return {**NUMBERS, "gain": normal(5, *shape), "bias": normal(6, *shape)}


@pytest.mark.parametrize("of_squares", [True, False])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("end", ENDS)
def test_parts_are_one_normalisation(of_squares: bool, factor: str, end: str) -> None:
    for shape, axes, gain in (
        ((6,), [-1], (6,)),
        ((3, 4), [1], (1, 3, 1)),
        ((4, 2, 2), [2, 3], ()),
    ):
        first = variance(of_squares=of_squares, axes=axes)
        nodes = [*first, ROOT, *FACTORS[factor], *ENDS[end]]
        network = assert_agrees(flattened(nodes, shape, gained(*gain)), samples=4)
        assert kinds(network)[:2] == ["centre", "standardize"], (shape, kinds(network))
        assert "l2-pool2d" not in kinds(network)
        layer = network.layer(network.nodes[1].name)
        assert isinstance(layer, Standardize)
        assert layer.eps == float(np.float32(1e-3))


def test_groups_with_a_gain_for_each_channel_are_read() -> None:
    """Keras' GroupNormalization: [h, w, groups, channels of one], and the same after it."""
    constants = {**gained(1, 1, 1, 2, 3), "split": np.array([0, 2, 2, 2, 3])}
    reshaped = node("Reshape", ["input", "split"], ["x"])
    nodes = [*variance(of_squares=True, axes=[1, 2, 4]), ROOT, *FACTORS["quotient"], *ENDS["keras"]]
    model = graph_of([reshaped, *nodes], (2, 2, 6), constants, output="y")
    model.graph.input[0].name = "input"
    model.graph.node.extend([node("Flatten", ["y"], ["flat"], axis=1)])
    model.graph.output[0].name = "flat"
    network = assert_agrees(model.SerializeToString(), samples=3)
    assert kinds(network)[1:3] == ["centre", "standardize"]


def test_numbers_times_the_reciprocal_of_their_length_are_read() -> None:
    """RMS normalisation as torch's newer exporter writes it before opset 23."""
    squares = [
        node("Pow", ["x", "two"], ["s"]),
        node("ReduceMean", ["s"], ["q"], axes=[-1], keepdims=1),
        node("Add", ["q", "eps"], ["v"]),
        *(ROOT, node("Reciprocal", ["r"], ["i"])),
    ]
    for end in (
        [node("Mul", ["x", "i"], ["z"]), node("Mul", ["z", "gain"], ["y"])],
        [node("Mul", ["gain", "i"], ["c"]), node("Mul", ["c", "x"], ["y"])],
        [node("Cast", ["i"], ["c"], to=1), node("Mul", ["c", "x"], ["y"])],
    ):
        network = assert_agrees(flattened([*squares, *end], (5,), gained(5)))
        assert kinds(network)[0] == "standardize"
    # Of something else than the numbers that are multiplied.
    for nodes in (
        [*squares, node("Neg", ["x"], ["n"]), node("Mul", ["n", "i"], ["y"])],
        [*squares, node("Mul", ["i", "i"], ["y"])],
        [*squares, node("Add", ["i", "x"], ["y"])],
        [*squares, node("Relu", ["i"], ["y"])],
        [*squares, node("Concat", ["i", "x"], ["y"], axis=1)],
    ):
        assert refused(flattened(nodes, (5,), gained(5))).code == "unsupported_operator"


def test_two_means_of_one_sample_make_one_normalisation() -> None:
    again = node("ReduceMean", ["x"], ["m2"], axes=[-1], keepdims=1)
    first = [*variance(of_squares=False, axes=[-1]), ROOT, again, node("Sub", ["x", "m2"], ["e"])]
    for end in (
        [node("Div", ["e", "r"], ["y"])],
        [node("Reciprocal", ["r"], ["c"]), node("Mul", ["e", "c"], ["y"])],
    ):
        network = assert_agrees(flattened([*first, *end], (6,), NUMBERS))
        assert kinds(network)[:3] == ["centre", "centre", "standardize"] or "standardize" in kinds(
            network
        )
        place = kinds(network).index("standardize")
        # Its variance is any mean's: it is not that of the numbers beside it.
        assert network.nodes[place].inputs[1] == "input"


def test_parts_that_do_not_belong_together_are_refused() -> None:
    first = [*variance(of_squares=True, axes=[2]), ROOT]
    factor, end = FACTORS["quotient"], ENDS["keras"]
    twice = [node("Div", ["one", "r"], ["i2"]), node("Mul", ["i2", "gain"], ["c2"])]
    other = node("ReduceMean", ["x"], ["w"], axes=[1], keepdims=1)
    unkept = node("ReduceMean", ["x"], ["u"], axes=[2], keepdims=0)
    wrong = [
        # Two factors, each rounded in its own way.
        [*factor, *twice, end[0], node("Mul", ["n", "c2"], ["o"]), *end[2:]],
        # The mean is added, not taken away.
        [*factor, node("Mul", ["m", "c"], ["o"]), *end[2:]],
        # The mean over another axis, and of other numbers.
        [*factor, other, node("Neg", ["w"], ["n"]), *end[1:]],
        [*factor, node("Relu", ["x"], ["a"]), *end[:3], node("Mul", ["a", "c"], ["p"]), end[4]],
        # A bias twice, a gain twice, the root itself.
        [
            *factor,
            *end[:3],
            node("Add", ["b", "bias"], ["b2"]),
            end[3],
            node("Add", ["p", "b2"], ["y"]),
        ],
        [*factor, node("Mul", ["c", "gain"], ["c2"]), node("Mul", ["x", "c2"], ["y"])],
        [node("Mul", ["x", "r"], ["y"])],
        [node("Div", ["r", "one"], ["y"])],
        # Numbers without what is taken from them.
        [*factor, node("Mul", ["x", "c"], ["y"])],
        [*factor, node("Mul", ["x", "c"], ["p"]), node("Relu", ["p"], ["y"])],
        [*factor, unkept, node("Mul", ["u", "c"], ["y"])],
    ]
    for nodes in wrong:
        error = refused(flattened([*first, *nodes], (3, 3), gained(3)))
        assert error.code in ("unsupported_operator", "batch_dependent", "shape_mismatch"), nodes


@pytest.mark.parametrize(
    "nodes",
    [
        # A squared mean of other numbers, over other axes, twice, or with a factor.
        [(0, node("ReduceMean", ["a"], ["m"], axes=[2], keepdims=1))],
        [(0, node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=1))],
        [(3, node("Mul", ["m", "two"], ["mm"]))],
        [(4, node("Sub", ["mm", "q"], ["var"]))],
        [(2, node("ReduceSum", ["s", "axis"], ["q"], keepdims=1))],
    ],
)
def test_other_differences_of_squares_are_no_variance(nodes: list[tuple[int, NodeProto]]) -> None:
    first = variance(of_squares=True, axes=[2])
    for place, other in nodes:
        first[place] = other
    first.insert(0, node("Relu", ["x"], ["a"]))
    parts = [*first, ROOT, *FACTORS["quotient"], *ENDS["keras"]]
    constants = {**gained(3), "axis": np.array([2])}
    # The root and what follows are what they are, bounded number by number; nothing is normalised.
    network = import_onnx_bytes(flattened(parts, (3, 3), constants))
    assert {"sqrt", "reciprocal"} <= {*kinds(network)}
    assert not {"centre", "standardize"} & {*kinds(network)}
    assert_agrees(flattened([*first, node("Neg", ["var"], ["y"])], (3, 3), constants))


def modules() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    def images(*norm: nn.Module) -> nn.Module:
        last = nn.Linear(8 * 36, 4)
        return nn.Sequential(nn.Conv2d(3, 8, 3), *norm, nn.ReLU(), nn.Flatten(), last)

    line = (nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4), nn.Flatten(), nn.Linear(40, 3))
    flat = (nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 3))
    return {
        "groups": (images(nn.GroupNorm(4, 8)), (3, 8, 8)),
        "one group": (images(nn.GroupNorm(1, 8)), (3, 8, 8)),
        "groups without scales": (images(nn.GroupNorm(2, 8, affine=False)), (3, 8, 8)),
        "instances": (images(nn.InstanceNorm2d(8)), (3, 8, 8)),
        "scaled instances": (images(nn.InstanceNorm2d(8, affine=True)), (3, 8, 8)),
        "instances of lines": (nn.Sequential(*line), (2, 12)),
        "groups of features": (nn.Sequential(*flat), (6,)),
    }


@pytest.mark.parametrize("opset", [9, 18])
@pytest.mark.parametrize("symbolic", [True, False])
def test_exports_of_torch_are_taken(opset: int, symbolic: bool) -> None:
    torch.manual_seed(0)
    for name, (module, shape) in modules().items():
        for values in module.parameters():
            values.data += 0.3 * torch.randn_like(values)
        x, stream = torch.rand(2 if symbolic else 1, *shape), io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                (x,),
                stream,
                input_names=["x"],
                opset_version=opset,
                dynamic_axes={"x": {0: "n"}} if symbolic else None,
                dynamo=False,
            )
        network = assert_agrees(stream.getvalue())
        with torch.no_grad():
            assert torch.allclose(network(x), module(x), atol=1e-5), name
        assert "standardize" in kinds(network)
