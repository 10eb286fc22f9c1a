"""AOL, CPL, SLL and BRO layers, l2 pools: they lengthen nothing, and what is deployed is they."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.architectures.published import build
from models.errors import ModelError
from models.layers.base import Layer
from models.layers.kinds import LAYER_KINDS, Add, Conv2d, Linear, Reshape
from models.layers.one_lipschitz import ONE_LIPSCHITZ, BroConv2d, BroLinear
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from workers.verification.bounds.lipschitz import lipschitz_constant
from workers.verification.graph.compiled_network import CompiledNetwork

F64 = torch.float64

#: A row of a layer list, and the shape that it takes.
ROWS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "aol-conv2d": ({"out": 6, "kernel": 3, "padding": 1}, (4, 6, 5)),
    "aol-conv2d with a stride": ({"out": 3, "kernel": [2, 3], "stride": 2}, (4, 6, 5)),
    "aol-linear": ({"out": 7}, (12,)),
    "cpl-conv2d": ({"inner": 6}, (4, 6, 5)),
    "cpl-linear": ({"inner": 5}, (12,)),
    "sll-conv2d": ({"inner": 6, "kernel": [1, 3]}, (4, 6, 5)),
    "sll-linear": ({}, (12,)),
    "bro-conv2d": ({"rank": 2}, (4, 6, 5)),
    "bro-conv2d of 3": ({"kernel": 3}, (4, 6, 5)),
    "bro-linear": ({"rank": 5}, (12,)),
    "l2-pool2d": ({"kernel": [2, 3]}, (4, 6, 7)),
    "global-l2-pool": ({}, (4, 6, 5)),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network_of(case: str) -> Network:
    """The layer with weights that are not its first ones, flattened, and a head of norm 1."""
    row, shape = ROWS[case]
    layers: list[dict[str, Any]] = [{"kind": case.split(" ")[0], **row}, {"kind": "flatten"}]
    layers = layers if len(shape) == 3 else layers[:1]
    layers.append({"kind": "orthogonal-linear", "out": 3})
    network = build({"input": list(shape), "layers": layers}, generator=generator())
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator(len(name)))
            parameter.add_(0.3 * noise * parameter.abs().max().clamp_min(0.1))
    return network


def layer_of(network: Network) -> Layer:
    return network.layer(network.nodes[0].name)


@pytest.mark.parametrize("case", ROWS)
def test_what_is_deployed_is_the_layer_and_has_norm_1(case: str) -> None:
    network = network_of(case)
    deployed = network.deployed()
    assert not {type(deployed.layer(n.name)) for n in deployed.nodes} & set(ONE_LIPSCHITZ)
    x = torch.randn(3, *network.input_shape, generator=generator(1))
    with torch.no_grad():
        expected = network(x)
        assert torch.allclose(deployed(x), expected, atol=2e-5)
        data = export_onnx(deployed)
        again = import_onnx_bytes(data)
        assert torch.allclose(again(x), expected, atol=2e-5)
        found = torch.from_numpy(OnnxRuntimeModel(data, network.input_shape)(x.numpy()))
        assert torch.allclose(found, expected, atol=2e-5)
        for form in (deployed, again):
            assert lipschitz_constant(CompiledNetwork.compile(form)) <= 1.0 + 2e-4


@pytest.mark.parametrize("case", ROWS)
def test_no_two_points_part(case: str) -> None:
    """In training as well as frozen, at any weights (a power step may lag behind)."""
    network = network_of(case)
    layer = layer_of(network).double()
    x = torch.randn(40, *network.input_shape, generator=generator(2), dtype=F64)
    step = torch.randn(x.shape, generator=generator(3), dtype=F64)
    step = step * 10.0 ** torch.linspace(-5, 1, 40).reshape(-1, *([1] * (x.dim() - 1)))
    for learning in (False, True):
        if learning and case.startswith("cpl"):
            for _ in range(30):
                layer(x)
        with torch.set_grad_enabled(learning):
            # In one batch: every call in training moves the vector of the power steps.
            ends = layer(torch.cat([x + step, x])).flatten(1)
        moved = (ends[:40] - ends[40:]).norm(dim=1)
        slack = 1e-3 if learning else 1e-9
        assert bool((moved <= step.flatten(1).norm(dim=1) * (1 + slack)).all())


@pytest.mark.parametrize("case", [case for case in ROWS if not case.startswith("cpl")])
def test_gradients_are_those_of_finite_differences(case: str) -> None:
    network = network_of(case)
    layer = layer_of(network).double()
    x = torch.randn(2, *network.input_shape, generator=generator(4), dtype=F64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]
    values = [parameter.detach().requires_grad_() for parameter in layer.parameters()]

    def run(x: Tensor, *given: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(
            layer, dict(zip(names, given, strict=True)), (x,)
        )
        return result

    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)


def test_a_convex_potential_learns_against_its_own_norm() -> None:
    """Its norm's share of the gradient: at the fixed point of the power steps, scaling W by s
    scales the layer's step by nothing, so that the gradient is orthogonal to W up to the bias."""
    layer = layer_of(network_of("cpl-linear")).double()
    assert hasattr(layer, "bias")
    x = torch.randn(5, 12, generator=generator(5), dtype=F64)
    with torch.no_grad():
        layer.bias.zero_()
    for _ in range(300):
        layer(x)
    layer(x).square().sum().backward()
    weight = layer.weight
    assert isinstance(weight, torch.nn.Parameter)
    assert weight.grad is not None
    assert float(weight.grad.norm()) > 1e-3
    along = float((weight.grad * weight.detach()).sum())
    assert abs(along) <= 1e-6 * float(weight.grad.norm())


@pytest.mark.parametrize("case", ["bro-conv2d", "bro-conv2d of 3", "bro-linear"])
def test_block_reflectors_are_orthogonal(case: str) -> None:
    network = network_of(case)
    layer = layer_of(network).double()
    assert isinstance(layer, BroConv2d | BroLinear)
    with torch.no_grad():
        layer.bias.zero_()
        size = torch.Size(network.input_shape).numel()
        units = torch.eye(size, dtype=F64).reshape(-1, *network.input_shape)
        values = torch.linalg.svdvals(layer(units).flatten(1))
    assert float(values[0]) <= 1 + 1e-9
    assert float(values[-1]) >= 1 - 1e-4


def test_a_zero_weight_is_no_division_by_zero() -> None:
    for case in ROWS:
        network = network_of(case)
        layer = layer_of(network)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
        x = torch.randn(2, *network.input_shape, requires_grad=True)
        result = layer(x)
        result.sum().backward()
        assert bool(torch.isfinite(result).all())
        assert bool(torch.isfinite(layer.deployed(network.input_shape)[0].layer(x)).all())


def test_the_norm_of_zeros_has_the_gradient_zero() -> None:
    layer = LAYER_KINDS["l2-pool2d"].build({"kernel": [2, 2], "stride": [2, 2]}, {})
    x = torch.zeros(1, 1, 2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert bool((x.grad == 0).all())


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"kind": "cpl-conv2d", "kernel": 2}, [4, 6, 6]),
        ({"kind": "sll-linear"}, [4, 6, 6]),
        ({"kind": "bro-linear", "rank": 12}, [12]),
        ({"kind": "bro-conv2d", "kernel": 3}, [8, 32, 32]),
        ({"kind": "bro-conv2d", "kernel": 7}, [4, 6, 6]),
        ({"kind": "aol-conv2d", "out": 3, "kernel": 9}, [4, 6, 6]),
        ({"kind": "global-l2-pool"}, [12]),
        ({"kind": "sll-conv2d", "inner": 0}, [4, 6, 6]),
        ({"kind": "cpl-linear", "inner": 1 << 23}, [1 << 10]),
    ],
)
def test_rows_that_fit_nothing_are_refused(row: dict[str, Any], shape: list[int]) -> None:
    tail = [{"kind": "flatten"}, {"kind": "linear", "out": 2}]
    with pytest.raises(ModelError) as caught:
        build({"input": shape, "layers": [row, *tail]})
    assert caught.value.code in ("invalid_architecture", "model_too_large")


def test_a_potential_is_deployed_as_two_maps_and_a_sum() -> None:
    deployed = network_of("sll-linear").deployed()
    kinds = [type(deployed.layer(node.name)) for node in deployed.nodes]
    assert kinds.count(Add) == 1
    assert kinds.count(Linear) == 3
    assert not {Conv2d, Reshape} & set(kinds)
