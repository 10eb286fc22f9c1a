"""What other people's code exports gets the radius that its layers of norm 1 deserve."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from models.layers.activations import Abs
from models.layers.base import Layer
from models.layers.kinds import Linear
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from models.rewriting import in_partial_sums, rewritten
from tests.workers.verification.uploads.library_networks import NETWORKS, exported, networks, normal
from tests.workers.verification.uploads.wide_networks import (
    WideNetwork,
    dense_network,
    image_network,
)
from workers.verification.bounds.bcp import bcp_margins
from workers.verification.bounds.lipschitz import lipschitz_constant, lipschitz_radius
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding

F64 = torch.float64
#: Of the radius that a network of norm 1 before its last layer has.
DESERVED = 0.95


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_norm_1_gets_the_radius_that_it_deserves(name: str) -> None:
    module = networks(name)
    data = exported(module)
    network = import_onnx_bytes(data)
    x = torch.rand(3, *network.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = module(x)
        assert torch.allclose(network(x), expected, atol=1e-5)
        found = torch.from_numpy(OnnxRuntimeModel(data, network.input_shape)(x.numpy()))
        assert torch.allclose(found, expected, atol=1e-5)
        compiled = CompiledNetwork.compile(network)
        labels = expected.argmax(1)
        rounding = Rounding.sound(F64)
        radius = lipschitz_radius(compiled, x, labels, norm="l2", rounding=rounding, dtype=F64)
        margins = expected.gather(1, labels[:, None]) - expected
        pairs = compiled.head.pair_norms[labels]
        deserved = (margins / pairs).scatter(1, labels[:, None], torch.inf).amin(1)
        assert bool((radius >= DESERVED * deserved).all())
        assert lipschitz_constant(compiled) <= 1.0 + 1e-3
        # Ball and box know the parts too.
        region = Region(x, DESERVED * deserved, "l2", clip=False)
        assert bool((bcp_margins(compiled, region, labels, rounding, F64) > 0).all())
    _attacked(module, x, labels, radius)


def _six_layers(size: int) -> tuple[Network, torch.Tensor, float]:
    """Rotations and |.|, an input, and the radius that it deserves: as small beside the input as
    that of a trained network for pictures."""
    rows: list[tuple[str, Layer, tuple[str, ...]]] = []
    last = "input"
    for index in range(6):
        matrix = torch.linalg.qr(normal(size, size + index)[:, :size].double())[0].float()
        rows += [(f"z{index}", Linear(matrix), (last,)), (f"a{index}", Abs(), (f"z{index}",))]
        last = f"a{index}"
    x = torch.rand(1, size, generator=torch.Generator().manual_seed(1))
    deserved = 0.005 * float(x.norm())
    z = Network((size,), rows)(x).double()[0]
    weight = torch.linalg.qr(normal(size, 2).double())[0].T
    lead = float((weight[0] - weight[1]) @ z) - deserved * 2**0.5
    head = Linear(weight.float(), torch.tensor([-lead, 0.0]))
    return Network((size,), [*rows, ("y", head, (last,))]), x, deserved


def _radius(compiled: CompiledNetwork, x: torch.Tensor) -> float:
    label, rounding = torch.zeros(1, dtype=torch.int64), Rounding.sound(F64)
    return float(lipschitz_radius(compiled, x, label, norm="l2", rounding=rounding, dtype=F64))


@torch.no_grad()
def test_six_layers_of_many_channels_keep_what_they_deserve() -> None:
    network, x, deserved = _six_layers(128)
    compiled = CompiledNetwork.compile(network)
    assert DESERVED * deserved <= _radius(compiled, x) < deserved * 1.001
    # As gamma_n alone has it, this much would be lost.
    gamma = sum(
        Rounding.sound(F64).deployed_gamma(step.op.terms) * step.norms.absolute
        for step in compiled.steps
        if isinstance(step.op, Affine)
    )
    assert gamma * float(x.norm()) > 0.08 * deserved


@pytest.mark.parametrize(
    ("make", "as_it_is"),
    [
        (lambda: dense_network(256), 0.91),
        (lambda: dense_network(1024, layers=2), 0.81),
        (lambda: image_network(32, 4), 0.9),
    ],
    ids=["dense 256", "dense 1024", "3x3, 32 channels"],
)
@torch.no_grad()
def test_wide_networks_keep_it_as_partial_sums(
    make: Callable[[], WideNetwork], as_it_is: float
) -> None:
    """Not as they are: in its worst order a sum may be off by as much. As another file."""
    wide = make()
    network = import_onnx_bytes(wide.onnx)
    assert _radius(CompiledNetwork.compile(network), wide.x) < as_it_is * wide.deserved
    file = export_onnx(in_partial_sums(network))
    again = import_onnx_bytes(file)
    x = torch.rand(3, *network.input_shape, generator=torch.Generator().manual_seed(2))
    deployed = torch.from_numpy(OnnxRuntimeModel(file, network.input_shape)(x.numpy()))
    assert torch.allclose(deployed, network(x), atol=1e-4)
    found = _radius(CompiledNetwork.compile(again), wide.x)
    assert DESERVED * wide.deserved <= found < wide.deserved * 1.001


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_every_library_network_keeps_its_radius_in_partial_sums(name: str) -> None:
    """Chains of partial sums are parts of what is known as a whole: residual blocks, windows around
    the image."""
    network = import_onnx_bytes(exported(networks(name)))
    found = rewritten(network, lost=1.0)
    assert found.changed
    again = import_onnx_bytes(export_onnx(found.network))
    x = torch.rand(3, *network.input_shape, generator=torch.Generator().manual_seed(2))
    labels = network(x).argmax(1)
    assert torch.allclose(again(x), network(x), atol=1e-5)
    before, after = (
        lipschitz_radius(
            CompiledNetwork.compile(n),
            x,
            labels,
            norm="l2",
            rounding=Rounding.sound(F64),
            dtype=F64,
        )
        for n in (network, again)
    )
    assert bool((after >= 0.9999 * before).all())


def _attacked(
    module: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor, radius: torch.Tensor
) -> None:
    """Steps along the gradient, at the radius itself."""
    module = module.double()
    sphere = radius[:, None, None, None] * (1 - 1e-9)
    point = x.double()
    for _ in range(8):
        point = point.detach().requires_grad_()
        logits = module(point)
        own = logits.gather(1, labels[:, None])[:, 0]
        others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        (gradient,) = torch.autograd.grad((others - own).sum(), point)
        step = point + sphere * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
        moved = step - x
        size = moved.flatten(1).norm(dim=1)[:, None, None, None]
        point = x + sphere * moved / size
    assert bool((module(point).argmax(1) == labels).all())
