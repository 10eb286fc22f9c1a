"""Layer normalisation as an operator and as nodes: read as one thing, computed as the file does."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, helper
from torch import Tensor, nn

from models.errors import ModelError
from models.layers.normalization import Centre, Standardize
from models.network import Network
from models.onnx.importer import import_onnx_bytes
from tests.models.onnx.graphs import Array, assert_agrees, flattened, graph_of, normal

node = helper.make_node
NUMBERS = {
    "two": np.array(2.0, np.float32),
    "half": np.array(0.5, np.float32),
    "eps": np.array(1e-5, np.float32),
    "none": np.array(0.0, np.float32),
}


def kinds(network: Network) -> list[str]:
    return [network.layer(row.name).kind for row in network.nodes]


def in_nodes(axes: list[int], *changes: tuple[int, NodeProto]) -> list[NodeProto]:
    """The nodes that torch writes before opset 17, some of them replaced."""
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=axes, keepdims=1),
        node("Sub", ["x", "m"], ["d"]),
        node("Pow", ["d", "two"], ["s"]),
        node("ReduceMean", ["s"], ["v"], axes=axes, keepdims=1),
        node("Add", ["v", "eps"], ["e"]),
        node("Sqrt", ["e"], ["r"]),
        node("Div", ["d", "r"], ["y"]),
    ]
    for place, other in changes:
        nodes[place] = other
    return nodes


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((6,), [-1]), ((3, 4), [2]), ((3, 4), [1, 2]), ((2, 3, 4), [1]), ((2, 3, 4), [2, 3])],
)
def test_nodes_are_one_normalisation(shape: tuple[int, ...], axes: list[int]) -> None:
    network = assert_agrees(flattened(in_nodes(axes), shape, NUMBERS), samples=4)
    assert kinds(network)[:2] == ["centre", "standardize"]
    layer = network.layer(network.nodes[1].name)
    assert isinstance(layer, Standardize)
    assert layer.eps == float(np.float32(1e-5))
    # Both inputs are the numbers less their mean: the file's variance is theirs.
    assert len(set(network.nodes[1].inputs)) == 1


def test_variants_of_the_nodes_are_read_alike() -> None:
    again = node("Sub", ["x", "m"], ["again"])
    variants = [
        in_nodes([1], (2, node("Mul", ["d", "d"], ["s"]))),
        in_nodes([1], (5, node("Pow", ["e", "half"], ["r"]))),
        in_nodes([1], (4, node("Add", ["eps", "v"], ["e"]))),
        [*in_nodes([1])[:6], again, node("Div", ["again", "r"], ["y"])],
    ]
    for nodes in variants:
        network = assert_agrees(flattened(nodes, (6,), NUMBERS))
        assert kinds(network)[:2] == ["centre", "standardize"]
        assert "l2-pool2d" not in kinds(network)


def test_without_the_mean_it_is_a_norm_by_root_mean_squares() -> None:
    rooted = [
        node("Mul", ["x", "x"], ["s"]),
        node("ReduceMean", ["s"], ["v"], axes=[-1], keepdims=1),
        node("Add", ["v", "eps"], ["e"]),
        node("Sqrt", ["e"], ["r"]),
        node("Div", ["x", "r"], ["y"]),
    ]
    assert kinds(assert_agrees(flattened(rooted, (5,), NUMBERS)))[0] == "standardize"


@pytest.mark.parametrize(
    ("shape", "axis"), [((6,), -1), ((6,), 1), ((3, 4), -1), ((3, 4), 1), ((2, 3, 4), 2)]
)
@pytest.mark.parametrize("shift", [True, False])
def test_the_operator_is_a_centre_a_quotient_a_scale_and_a_shift(
    shape: tuple[int, ...], axis: int, shift: bool
) -> None:
    over = shape[axis if axis < 0 else axis - 1 :]
    constants = {"scale": normal(1, *over), "shift": normal(2, *over)}
    inputs = ["x", "scale", *(["shift"] if shift else [])]
    nodes = [node("LayerNormalization", inputs, ["y"], axis=axis, epsilon=1e-3)]
    network = assert_agrees(flattened(nodes, shape, constants, opset=17), samples=4)
    expected = ["centre", "standardize", "multiply", *(["shift"] if shift else [])]
    assert kinds(network)[: len(expected)] == expected
    # The variance is computed from what was there before the mean went.
    assert network.nodes[1].inputs == (network.nodes[0].name, "input")


def test_the_operator_without_a_batch_axis_and_by_root_mean_squares() -> None:
    ones: dict[str, Array] = {"scale": np.ones(4, np.float32)}
    nodes = [
        node("LayerNormalization", ["x", "scale"], ["n"], axis=-1),
        node("LeakyRelu", ["n"], ["y"], alpha=0.5),
    ]
    model = graph_of(nodes, (4,), ones, opset=17)
    del model.graph.input[0].type.tensor_type.shape.dim[0]
    assert kinds(import_onnx_bytes(model.SerializeToString()))[:2] == ["centre", "standardize"]
    rms = [node("RMSNormalization", ["x", "scale"], ["y"], axis=-1, epsilon=1e-2)]
    network = assert_agrees(flattened(rms, (3, 4), {"scale": normal(1, 4)}, opset=23))
    assert kinds(network)[:2] == ["standardize", "multiply"]


def refused(nodes: list[NodeProto], shape: tuple[int, ...] = (6,), **options: Any) -> ModelError:
    constants = {**NUMBERS, "scale": np.ones(shape[-1], np.float32)}
    with pytest.raises(ModelError) as caught:
        import_onnx_bytes(flattened(nodes, shape, constants, **options))
    return caught.value


def test_what_is_none_is_refused_by_its_reason() -> None:
    def operator(*outputs: str, **attributes: Any) -> list[NodeProto]:
        return [node("LayerNormalization", ["x", "scale"], ["y", *outputs], **attributes)]

    assert refused(operator(axis=0), opset=17).code == "batch_dependent"
    assert "epsilon" in str(refused(operator(epsilon=0.0), opset=17))
    assert "epsilon" in str(refused(operator(epsilon=-1.0), opset=17))
    assert "stash_type" in str(refused(operator(stash_type=10), opset=17))
    used = [*operator("mean")[:-1], node("LayerNormalization", ["x", "scale"], ["z", "mean"])]
    used.append(node("Add", ["z", "mean"], ["y"]))
    assert "first output" in str(refused(used, opset=17))
    assert "epsilon" in str(refused(in_nodes([1], (4, node("Add", ["v", "none"], ["e"])))))
    # Divided by the root of another sum, by one over other axes, by one that is not a mean.
    other = in_nodes([1], (6, node("Div", ["x", "r"], ["y"])))
    dropped = in_nodes([2], (3, node("ReduceMean", ["s"], ["v"], axes=[2], keepdims=0)))
    summed = in_nodes([1], (3, node("ReduceSum", ["s", "axis"], ["v"], keepdims=1)))
    constants = {**NUMBERS, "axis": np.array([1])}
    for nodes, shape in ((other, (6,)), (summed, (6,))):
        network = assert_agrees(flattened(nodes, shape, constants))
        assert kinds(network).count("reciprocal") == 1
        assert "standardize" not in kinds(network)
    assert refused(dropped, (6, 6)).code == "batch_dependent"


def test_every_mean_is_a_value_of_its_own() -> None:
    """The operator's beside the nodes', and two nodes': they may be rounded in different ways."""
    ones: dict[str, Array] = {"scale": np.ones(6, np.float32)}
    ends = [node("LayerNormalization", ["x", "scale"], ["l"], axis=-1)]
    ends.append(node("Add", ["d", "l"], ["y"]))
    both = assert_agrees(flattened([*in_nodes([1])[:2], *ends], (6,), ones, opset=17))
    assert kinds(both).count("centre") == 2
    again = [
        *in_nodes([1])[:2],
        node("ReduceMean", ["x"], ["n"], axes=[1], keepdims=1),
        node("Sub", ["x", "n"], ["f"]),
        node("Add", ["d", "f"], ["y"]),
    ]
    assert kinds(assert_agrees(flattened(again, (6,)))).count("centre") == 2


def test_the_mean_of_something_else_stays_a_difference() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("ReduceMean", ["a"], ["m"], axes=[1], keepdims=1),
        node("Sub", ["x", "m"], ["y"]),
    ]
    assert "centre" not in kinds(assert_agrees(flattened(nodes, (6,))))
    without = [
        node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=0),
        node("Sub", ["x", "m"], ["y"]),
    ]
    with pytest.raises(ModelError):
        import_onnx_bytes(flattened(without, (6, 6)))


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("pads", [[1, 1, 1, 1], [0, 0, 3, 3], [2, 0, 0, 0]])
def test_a_window_of_the_image_s_size_that_is_moved_is_not_the_mean(
    pads: list[int], include: int
) -> None:
    """One window as large as the image, beyond its edges: what it leaves out is not in its mean."""
    pool = node(
        *("AveragePool", ["x"], ["m"]),
        kernel_shape=[4, 4],
        pads=pads,
        strides=[5, 5],
        count_include_pad=include,
    )
    data = flattened([pool, node("Sub", ["x", "m"], ["y"])], (2, 4, 4))
    assert "centre" not in kinds(assert_agrees(data, samples=4))
    plain = node("AveragePool", ["x"], ["m"], kernel_shape=[4, 4], strides=[5, 5])
    data = flattened([plain, node("Sub", ["x", "m"], ["y"])], (2, 4, 4))
    assert "centre" in kinds(assert_agrees(data, samples=4))


class Block(nn.Module):
    """ConvNeXt's: depthwise, layer norm over channels, two pointwise layers, a residual sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 2, 2)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.wide, self.narrow = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)
        self.scale = nn.Parameter(0.1 * torch.rand(width, 1, 1))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x + self.scale * self.narrow(nn.functional.gelu(self.wide(y)))
        logits: Tensor = self.head(self.last(x.mean((2, 3))))
        return logits


class ChannelsFirst(nn.Module):
    """Layer norm over channels as ConvNeXt writes it between its stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 2, 2), nn.Linear(96, 3)
        self.weight, self.bias = (
            nn.Parameter(torch.rand(6, 1, 1)),
            nn.Parameter(torch.rand(6, 1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = self.weight * ((x - mean) / torch.sqrt(variance + 1e-6)) + self.bias
        logits: Tensor = self.head(torch.relu(x).flatten(1))
        return logits


def modules() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    dense = nn.Sequential(
        *(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU()),
        *(nn.Linear(16, 12), nn.LayerNorm(12, elementwise_affine=False), nn.GELU()),
        nn.Linear(12, 3),
    )
    whole = nn.Sequential(
        nn.Conv2d(3, 4, 2, 2), nn.LayerNorm([4, 4, 4]), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    image = torch.rand(2, 3, 8, 8)
    return {
        "dense": (dense, torch.rand(2, 8)),
        "whole maps": (whole, image),
        "ConvNeXt's block": (Block(6), image),
        "channels first": (ChannelsFirst(), image),
    }


@pytest.mark.parametrize("name", modules())
@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("symbolic", [True, False])
def test_exports_of_torch_are_taken(name: str, opset: int, symbolic: bool) -> None:
    module, x = modules()[name]
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (x if symbolic else x[:1],),
            stream,
            input_names=["x"],
            opset_version=opset,
            dynamic_axes={"x": {0: "n"}} if symbolic else None,
            dynamo=False,
        )
    network = assert_agrees(stream.getvalue())
    with torch.no_grad():
        assert torch.allclose(network(x), module(x), atol=1e-5)
    assert any(isinstance(network.layer(row.name), Centre) for row in network.nodes)
