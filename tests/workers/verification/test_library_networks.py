"""What other people's code exports gets the radius that its layers of norm 1 deserve."""

from __future__ import annotations

import pytest
import torch

from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.workers.verification.library_networks import NETWORKS, exported, networks
from workers.verification.bounds.bcp import bcp_margins
from workers.verification.bounds.lipschitz import lipschitz_constant, lipschitz_radius
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
