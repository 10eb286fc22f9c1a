"""Networks that end in dense, softplus, dense, and the nearest boundary that a search finds."""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers.activations import Softplus
from models.layers.kinds import Linear
from models.network import Network
from workers.verification.bounds.crc import SmoothHead
from workers.verification.graph.compiled_network import CompiledNetwork

F64 = torch.float64


def smooth_network(
    seed: int, *, features: int = 16, hidden: int = 64, classes: int = 2, scale: float = 1.0
) -> Network:
    """A random head on the input itself; ``scale`` of the first weights bends it more."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    first = scale * normal(hidden, features) * features**-0.5
    return Network(
        (features,),
        [
            (
                "first",
                Linear(first, normal(hidden)),
                ("input",),
            ),
            ("soft", Softplus(), ("first",)),
            ("last", Linear(normal(classes, hidden) * hidden**-0.5, normal(classes)), ("soft",)),
        ],
    ).eval()


def head_of(network: Network) -> SmoothHead:
    """The head as compiled."""
    return SmoothHead.of(CompiledNetwork.compile(network))


def logits(network: Network, x: Tensor) -> Tensor:
    """In float64."""
    double = Network.from_description(network.description(), network.state_dict()).double()
    with torch.no_grad():
        return double(x.to(F64))


def nearest_wrong(network: Network, h: Tensor, label: int, *, starts: int, seed: int = 0) -> Tensor:
    """[classes] float64: per other class the least |d| found with z_label(h + d) <= z_j(h + d)."""
    return nearest_moves(network, h, label, starts=starts, seed=seed).norm(dim=1)


def nearest_moves(network: Network, h: Tensor, label: int, *, starts: int, seed: int = 0) -> Tensor:
    """[classes, features] float64: per other class the shortest d found with
    z_label(h + d) <= z_j(h + d); infinite where none is.

    Each is a point that is there, so no bound may exceed its length. Steps onto the linearised
    constraint (sequential quadratic programming) from many starts, then bisection along the ray.
    """
    generator = torch.Generator().manual_seed(seed)
    first, last = network.layer("first"), network.layer("last")
    assert isinstance(first, Linear)
    assert isinstance(last, Linear)
    w1, w2 = first.weight.detach().to(F64), last.weight.detach().to(F64)
    assert first.bias is not None
    assert last.bias is not None
    b1, b2 = first.bias.detach().to(F64), last.bias.detach().to(F64)
    found = torch.full((len(w2), len(h)), torch.inf, dtype=F64)
    for other in range(len(w2)):
        if other == label:
            continue
        a, c = w2[label] - w2[other], b2[label] - b2[other]

        def value(d: Tensor) -> tuple[Tensor, Tensor]:
            before = (h.to(F64) + d) @ w1.T + b1
            f = torch.nn.functional.softplus(before, threshold=60.0) @ a + c  # noqa: B023
            return f, (torch.sigmoid(before) * a) @ w1  # noqa: B023

        d = (
            torch.randn(starts, len(h), generator=generator, dtype=F64)
            * torch.linspace(0, 4, starts, dtype=F64)[:, None]
        )
        for _ in range(150):
            f, g = value(d)
            step = g * (((g * d).sum(1) - f) / g.square().sum(1))[:, None] - d
            d = d + 0.5 * step if _ < 60 else d + step
        d = d.nan_to_num(0.0, 0.0, 0.0)
        low, high = torch.zeros(starts, dtype=F64), torch.full((starts,), 2.0, dtype=F64)
        crosses = value(d * high[:, None])[0] <= 0
        for _ in range(60):
            middle = (low + high) / 2
            inside = value(d * middle[:, None])[0] <= 0
            low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
        length = torch.where(crosses, d.norm(dim=1) * high, torch.inf)
        if bool(torch.isfinite(length).any()):
            best = int(length.argmin())
            found[other] = d[best] * high[best]
    return found
