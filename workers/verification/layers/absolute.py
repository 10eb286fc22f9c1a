"""Absolute value, on all channels or the first ones: exact in float32, and 1-Lipschitz."""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.kinds import Abs
from workers.verification.enclosure import Enclosure, box_to_ball
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.exact import EXACT
from workers.verification.layers.rules import Box, LayerRules, LinearRelaxation, TwoLines
from workers.verification.numerics import slack
from workers.verification.rounding import Rounding

__all__ = ["RULES"]


def _bent(layer: Abs, like: Tensor) -> Tensor:
    """Where |.| is taken, [1, *shape] bool: a mask over channels."""
    shape = [1, like.shape[1], *([1] * (like.dim() - 2))]
    count = like.shape[1] if layer.channels is None else layer.channels
    return (torch.arange(like.shape[1], device=like.device) < count).reshape(shape)


def _box(layer: Abs, lower: Tensor, upper: Tensor) -> Box:
    """Image of [l, u]: its nearest and its farthest number from 0, where |.| is taken."""
    bent = _bent(layer, lower)
    least = torch.maximum(torch.maximum(lower, -upper), torch.zeros_like(lower))
    most = torch.maximum(lower.abs(), upper.abs())
    return torch.where(bent, least, lower), torch.where(bent, most, upper)


def _forward(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    """|.| is 1-Lipschitz: the radius stays."""
    (state,) = inputs
    layer = step.layer(Abs)
    lower = upper = None
    if state.lower is not None and state.upper is not None:
        lower, upper = _box(layer, state.lower, state.upper)
    return box_to_ball(Enclosure(layer(state.centre), state.radius, lower, upper, state.valid))


def _lines(
    layer: Abs, lower: Tensor, upper: Tensor, rule: str, rounding: Rounding
) -> LinearRelaxation:
    """Of |z| on [l, u], l < 0 < u: above the chord; below any line s z with -1 <= s <= 1.

    ``crown`` takes s = 1 where u > -l, else -1, the nearer of both arms; ``cap`` the chord's slope.
    Elsewhere the layer is z or -z, exactly.
    """
    one, zero = torch.ones_like(upper), torch.zeros_like(upper)
    bent = _bent(layer, lower).expand_as(lower)
    unstable = bent & (lower < 0) & (upper > 0)
    arm = torch.where(bent & (upper <= 0), -one, one)
    chord = (upper + lower) / torch.where(unstable, upper - lower, one)
    chord = torch.where(unstable, chord.nan_to_num(0.0, 0.0, 0.0).clamp(-1.0, 1.0), arm)
    # A line is above |z| on the box where it is at both ends; the slope is a rounded one.
    ends = torch.maximum((-1.0 - chord) * lower, (1.0 - chord) * upper)
    lost = slack(lower.abs() + upper.abs(), 6 * rounding.own, rounding)
    intercept = torch.where(unstable, ends + lost, zero)
    nearer = torch.where(upper > -lower, one, -one)
    low = torch.where(unstable, chord if rule == "cap" else nearer, arm)
    return LinearRelaxation(low, None, chord, intercept, unstable, -1.0)


def _sides(layer: Abs, lower: Tensor, upper: Tensor, rounding: Rounding) -> TwoLines:
    one = torch.ones_like(lower)
    return TwoLines(torch.where(_bent(layer, lower), -one, one), one)


def _slopes(layer: Abs, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """1: on the centre's side of 0 nothing is gained, and a box on one side is a line."""
    return torch.ones_like(centre)


def _open(layer: Abs, boxes: list[Box]) -> Tensor:
    ((lower, upper),) = boxes
    return (lower < 0) & (upper > 0) & _bent(layer, lower)


RULES: dict[type[Layer], LayerRules] = {
    Abs: LayerRules(
        forward=_forward,
        ball=EXACT,
        slopes=_slopes,
        relax=_lines,
        two_lines=_sides,
        open=_open,
        kink_at_zero=True,
    ),
}
