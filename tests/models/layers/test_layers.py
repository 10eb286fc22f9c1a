"""Layers beside the classic ones: values, gradients, shapes, refusals, and what is written down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.architectures.published import blueprint, build
from models.checkpoints.state_dict import network_of_state_dict
from models.errors import ModelError
from models.layers.activations import AtLeast, AtMost, Clip, MaxMin, ReLUTheta
from models.layers.joins import Concat, Maximum, Minimum, ReduceMean, ReduceSum, Slice
from models.layers.kinds import LAYER_KINDS, Layer, LeakyReLU, Pad, ReLU, Reshape, ShapeError
from models.network import Network, NetworkError
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.layers.every_layer import every_new_layer, normal


def reference(x: Tensor, network: Network) -> Tensor:
    """The same network in one line per layer of plain torch."""
    layer: Any = network.layer
    theta = torch.min(x.clamp(min=0), layer("theta").theta)
    join = torch.cat([theta, x.tanh(), x], 1)
    pairs = torch.cat([torch.max(join[:, :6], join[:, 6:]), torch.min(join[:, :6], join[:, 6:])], 1)
    turned = pairs[:, [7, 1, 10, 4]]
    sizes = torch.cat([turned[:, :3].abs(), turned[:, 3:]], 1).abs()
    floor = torch.max(sizes, layer("floor").value)
    high = torch.max(floor, torch.min(x, layer("roof").value))
    wide = torch.cat([high, torch.min(floor, x.tanh())], 3).clamp(-0.7, 0.8)
    return torch.nn.functional.softplus(wide).sum(2).mean(1).sigmoid()


def test_forward_is_plain_torch() -> None:
    network, x = every_new_layer(), normal(7, 4, 3, 5)
    assert torch.allclose(network(x), reference(x, network), atol=1e-6)
    assert [row.shape for row in network.nodes][:5] == [
        (4, 3, 5), (4, 3, 5), (12, 3, 5), (12, 3, 5), (4, 3, 5)
    ]  # fmt: skip


def test_gradients() -> None:
    """Finite differences agree, thresholds included."""
    network = every_new_layer().double()
    x = (2 * normal(2, 4, 3, 5)).double().requires_grad_()
    assert torch.autograd.gradcheck(network, (x,))
    theta: Any = network.layer("theta")
    network(x).sum().backward()
    assert theta.theta.grad.abs().sum() > 0


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 20, 21])
def test_round_trip(opset: int) -> None:
    """Export, ONNX Runtime, import: the same logits; the description says the same, too."""
    network = every_new_layer()
    data = export_onnx(network, opset=opset)
    x = normal(6, 4, 3, 5)
    again = import_onnx_bytes(data)
    with torch.no_grad():
        assert torch.allclose(again(x), network(x), atol=1e-6)
        deployed = OnnxRuntimeModel(data, (4, 3, 5))(x.numpy())
        np.testing.assert_allclose(deployed, network(x).numpy(), atol=2e-6)
        rebuilt = Network.from_description(network.description(), network.state_dict())
        assert torch.equal(rebuilt(x), network(x))
    assert rebuilt.graph_digest() == network.graph_digest()
    new = {"relu-theta", "maxmin", "concat", "slice", "clip", "at-least", "at-most", "maximum",
           "minimum", "reduce-sum", "reduce-mean", "sigmoid", "tanh"}  # fmt: skip
    assert new <= {again.layer(row.name).kind for row in again.nodes} <= set(LAYER_KINDS)


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (Concat(axis=0), [(2, 3), (2, 4)]),
        (Concat(axis=2), [(2, 3), (2, 3)]),
        (Concat(axis=-1), [(2, 3), (2, 3)]),
        (Concat(axis=1), [(2, 3), (2,)]),
        (Concat(axis=0), [(2,), (2, 3)]),
        (Slice(axis=0, start=0, stop=4), [(3,)]),
        (Slice(axis=0, start=2, stop=2), [(3,)]),
        (Slice(axis=0, start=-1, stop=2), [(3,)]),
        (Slice(axis=0, start=0, stop=2, step=0), [(3,)]),
        (Slice(axis=1, start=0, stop=2), [(3,)]),
        (Maximum(), [(3,), (3, 1)]),
        (Minimum(), [(3,), (1,)]),
        (ReduceSum(axes=()), [(3, 4)]),
        (ReduceSum(axes=(2,)), [(3, 4)]),
        (ReduceMean(axes=(-1,)), [(3, 4)]),
        (ReduceMean(axes=(1, 1)), [(3, 4)]),
        (MaxMin(), [(3, 4)]),
        (MaxMin(), [()]),
        (ReLUTheta(normal(2, 3)), [(3,)]),
        (AtMost(normal(4)), [(3,)]),
        (AtLeast(normal(3)), [(1,)]),
    ],
)
def test_shapes_that_do_not_fit(layer: Layer, shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ShapeError):
        layer.output_shape(*shapes)


def test_number_of_inputs() -> None:
    for layer, count in ((Concat(), 1), (Maximum(), 1), (Maximum(), 3), (ReLU(), 2), (MaxMin(), 2)):
        with pytest.raises(NetworkError, match="inputs"):
            Network((4,), [("a", layer, ["input"] * count)])
    assert Network((4,), [("a", Concat(), ["input"] * 5)]).classes == 20


@pytest.mark.parametrize(
    "bounds",
    [{"low": 1.0, "high": 0.0}, {"low": float("nan")}, {"high": float("inf")}, {"low": 1e40}],
)
def test_clip_refuses(bounds: dict[str, float]) -> None:
    with pytest.raises(ModelError):
        Clip(**bounds)


def test_clip_holds_the_float32_number() -> None:
    assert Clip(low=0.1).low == float(np.float32(0.1))
    x = torch.tensor([0.1, 0.05], dtype=torch.float64)
    assert Clip(low=0.1)(x).tolist() == [float(np.float32(0.1))] * 2
    assert torch.equal(Clip()(x), x)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_maxmin_is_an_isometry_of_pairs(seed: int) -> None:
    """It sorts pairs: norms stay and distances do not grow."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 3, 6, 2, generator=generator)
    a, b = MaxMin()(x), MaxMin()(y)
    assert torch.allclose(a.norm(), x.norm())
    assert (a - b).norm() <= (x - y).norm() * (1 + 1e-6)
    assert (a[:, :3] >= a[:, 3:]).all()


def listed() -> dict[str, Any]:
    return {
        "input": [3, 6, 6],
        "layers": [
            {"kind": "conv2d", "out": 8, "kernel": 3, "name": "stem"},
            {"kind": "maxmin"},
            {"kind": "clip", "low": -1.0, "high": 2.5, "name": "bent"},
            {"kind": "slice", "stop": 4, "name": "first"},
            {"kind": "tanh", "name": "smooth"},
            {"kind": "slice", "axis": 0, "start": 4, "from": "bent", "name": "second"},
            {"kind": "maximum", "from": "smooth"},
            {"kind": "minimum", "from": ["first", "second"], "name": "low"},
            {"kind": "concat", "axis": 0, "from": ["low", "first", "smooth"]},
            {"kind": "relu6"},
            {"kind": "concat", "from": "maximum_"},
            {"kind": "relu-theta", "name": "bounded"},
            {"kind": "sigmoid"},
            {"kind": "reduce-mean", "axes": [1, 2]},
            {"kind": "linear", "out": 5, "name": "head"},
        ],
    }


def test_layer_lists() -> None:
    rows = listed()
    rows["layers"][6]["name"] = "maximum_"
    network = build(rows, generator=torch.Generator().manual_seed(0))
    assert [row.shape for row in network.nodes][-5:] == [
        (16, 4, 4), (16, 4, 4), (16, 4, 4), (16,), (5,)
    ]  # fmt: skip
    x = normal(2, 3, 6, 6)
    again = import_onnx_bytes(export_onnx(network))
    assert torch.allclose(again(x), network(x), atol=1e-6)
    plan = blueprint(rows)
    state = network.state_dict()
    names = {row.name: plan.names.get(row.name, row.name) for row in network.nodes}
    tensors = {
        f"{names[key.split('.')[1]]}.{key.split('.')[2]}": value for key, value in state.items()
    }
    assert set(tensors) == {"stem.weight", "stem.bias", "bounded.theta", "head.weight", "head.bias"}
    for ordered in (True, False):
        loaded = network_of_state_dict(tensors, plan, ordered=ordered)
        assert loaded.network.graph_digest() == network.graph_digest()
    tensors["bounded.theta"] = -tensors["bounded.theta"]
    with pytest.raises(ModelError, match="threshold"):
        network_of_state_dict(tensors, plan, ordered=True)


@pytest.mark.parametrize("activation", ["maxmin", "relu-theta", "sigmoid", "tanh"])
def test_named_architectures_with_other_activations(activation: str) -> None:
    network = build("mnist-small", activation=activation)
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    thetas = [layer for layer in network.layers.values() if isinstance(layer, ReLUTheta)]
    assert len(thetas) == (3 if activation == "relu-theta" else 0)
    assert all(bool((layer.theta == 1).all()) for layer in thetas)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"kind": "clip"}, "low"),
        ({"kind": "clip", "low": 1, "high": 0}, "above"),
        ({"kind": "clip", "low": float("nan")}, "number"),
        ({"kind": "clip", "low": True}, "number"),
        ({"kind": "slice", "axis": 3}, "axis"),
        ({"kind": "slice", "start": 3}, "slice"),
        ({"kind": "slice", "step": 0}, "step"),
        ({"kind": "slice", "start": -1}, "start"),
        ({"kind": "concat"}, "from"),
        ({"kind": "concat", "from": ["input"], "axis": 5}, "axis"),
        ({"kind": "maximum", "from": ["input"] * 3}, "takes 2"),
        ({"kind": "maxmin"}, "odd"),
        ({"kind": "reduce-sum"}, "axes"),
        ({"kind": "reduce-sum", "axes": [True]}, "axes"),
        ({"kind": "reduce-mean", "axes": [9]}, "axes"),
        ({"kind": "relu-theta", "init": 2}, "unknown keys"),
    ],
)
def test_refused_rows(row: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as caught:
        build({"input": [3, 4, 4], "layers": [row, {"kind": "flatten"}]})
    assert caught.value.code == "invalid_architecture"
    assert words in str(caught.value) + caught.value.hint


def test_a_view_of_everything_reduced() -> None:
    """A sum over all axes without keepdims has shape (): it can be viewed as [1]."""
    rows: list[Any] = [
        ("sum", ReduceSum(axes=(0, 1)), ("input",)),
        ("one", Reshape(shape=(1,)), ("sum",)),
        ("two", Concat(), ("one", "one")),
    ]
    network = Network((2, 3), rows)
    x = normal(3, 2, 3)
    assert torch.allclose(network(x), x.sum((1, 2))[:, None].expand(3, 2))
    again = import_onnx_bytes(export_onnx(network))
    assert torch.allclose(again(x), network(x))


def test_constants_are_what_a_float32_attribute_holds() -> None:
    assert Pad(padding=(1, 1, 1, 1), value=0.1).value == float(np.float32(0.1))
    assert LeakyReLU(slope=0.01).slope == float(np.float32(0.01))
    for slope in (2.0, -0.5):
        with pytest.raises(ModelError):
            LeakyReLU(slope=slope)
