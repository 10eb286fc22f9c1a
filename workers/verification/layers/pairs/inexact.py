"""Values of which the deployed number may be off by a share of the length of its pair of channels.

With s the share, a deployed pair is within s |p| of what it stands for, p (and of nothing less than
what underflow takes of a few products): of each number that is s |p|, of all numbers together at
most the largest share times their length. In real arithmetic the layer is its input itself.

What is not above ``LARGEST`` overflows nowhere on the file's way to it, which is a few products of
numbers of the pair with factors of at most 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.one_lipschitz import InexactPairs
from workers.verification.enclosure import Enclosure, box_to_ball
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.rules import Ball, Box, LayerRules, LinearRelaxation, TwoLines
from workers.verification.numerics import raised, rough_norm, slack
from workers.verification.rounding import Rounding

__all__ = ["RULES"]

#: Lengths of inputs up to which nothing overflows float32.
LARGEST = 1e37
#: Products on the file's way to one number, about: each may underflow.
PRODUCTS = 16


def _share(layer: Layer, like: Tensor) -> Tensor:
    """Of all channels [1, *shape], in the dtype of ``like`` and no less than it is."""
    if not isinstance(layer, InexactPairs):
        raise TypeError(f"{layer.kind} is exact")
    half = (1, like.shape[1] // 2, *like.shape[2:])
    # A float32 number is the same in float64.
    share = layer.share.to(device=like.device, dtype=like.dtype)
    return torch.cat([share.expand(half)] * 2, dim=1)


def _error(layer: Layer, lower: Tensor, upper: Tensor, rounding: Rounding) -> Tensor:
    """How far a deployed number may be off over a box, [batch, *shape]."""
    share = _share(layer, lower)
    if not rounding.is_sound:
        return torch.zeros_like(lower)
    far = torch.maximum(lower.abs(), upper.abs())
    length = torch.cat([torch.hypot(*far.chunk(2, dim=1))] * 2, dim=1)
    # Root and sums of the length, and the product, are few operations.
    error = raised(slack(length, 1.0, rounding) * share, dtype=lower.dtype)
    error = error + PRODUCTS * rounding.underflow
    return torch.where(torch.isfinite(length), error, torch.full_like(error, torch.inf))


def _growth(step: GraphStep, centre_norm: Tensor, rounding: Rounding) -> tuple[float, Tensor]:
    layer = step.op
    if not isinstance(layer, InexactPairs):
        raise TypeError(f"{step.kind} is exact")
    if not rounding.is_sound:
        return 1.0, torch.zeros_like(centre_norm)
    share = float(layer.share.max())
    lost = PRODUCTS * rounding.underflow * torch.Size(step.shape).numel() ** 0.5
    return raised(1.0 + share), raised(share * centre_norm + lost)


BALL = Ball(_growth, largest_input=LARGEST)


def _forward(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    (state,) = inputs
    layer, norms = step.layer(Layer), rough_norm(state.centre)
    radius = BALL.grown(step, state.radius, norms, rounding)
    size, lower, upper = norms + state.radius, state.lower, state.upper
    if lower is not None and upper is not None:
        size = torch.fmin(size, raised(rough_norm(torch.maximum(lower.abs(), upper.abs()))))
        error = _error(layer, lower, upper, rounding)
        # Sums are rounded once: a share of a number that is no longer than its pair.
        once = slack(torch.maximum(lower.abs(), upper.abs()), 3 * rounding.own, rounding)
        lower, upper = lower - error - once, upper + error + once
    valid = state.valid & (size < LARGEST) if rounding.is_sound else state.valid
    return box_to_ball(Enclosure(state.centre, radius, lower, upper, valid))


def _lines(
    layer: InexactPairs, lower: Tensor, upper: Tensor, rule: str, rounding: Rounding
) -> LinearRelaxation:
    one, error = torch.ones_like(upper), _error(layer, lower, upper, rounding)
    nowhere = torch.zeros_like(upper, dtype=torch.bool)
    return LinearRelaxation(one, -error, one, error, nowhere, 1.0)


def _sides(layer: InexactPairs, lower: Tensor, upper: Tensor, rounding: Rounding) -> TwoLines:
    return TwoLines(1.0, 1.0, _error(layer, lower, upper, rounding))


def _slopes(layer: InexactPairs, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return torch.ones_like(centre)


def _open(layer: InexactPairs, boxes: list[Box]) -> Tensor:
    """Nowhere: the errors are shares of roundings."""
    return torch.zeros_like(boxes[0][0], dtype=torch.bool)


RULES: dict[type[Layer], LayerRules] = {
    InexactPairs: LayerRules(
        forward=_forward,
        ball=BALL,
        slopes=_slopes,
        relax=_lines,
        two_lines=_sides,
        open=_open,
        slopes_in_unit_interval=True,
    ),
}
