"""A layer of the tests' own with all its rules: what a new layer family looks like.

This file is the whole family; its row goes into ``workers.verification.layers.registry.LAYERS``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers.kinds import Layer
from workers.verification.enclosure import Enclosure, box_to_ball
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.exact import EXACT
from workers.verification.layers.rules import Box, LayerRules, LinearRelaxation
from workers.verification.rounding import Rounding

__all__ = ["RULES", "Fold"]


class Fold(Layer):
    """|x|: exact in float32, 1-Lipschitz and not monotone."""

    kind = "fold"

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def _forward(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    (state,) = inputs
    lower = upper = None
    if state.lower is not None and state.upper is not None:
        ends = state.lower.abs(), state.upper.abs()
        lower = torch.minimum(*ends).masked_fill(_crosses(state.lower, state.upper), 0.0)
        upper = torch.maximum(*ends)
    return box_to_ball(Enclosure(state.centre.abs(), state.radius, lower, upper, state.valid))


def _lines(
    layer: Fold, lower: Tensor, upper: Tensor, rule: str, rounding: Rounding
) -> LinearRelaxation:
    one = torch.ones_like(lower)
    crosses = _crosses(lower, upper)
    side = torch.where(lower >= 0, one, -one)
    width = torch.where(crosses, upper - lower, one)
    chord = torch.where(crosses, ((upper + lower) / width).clamp(-1, 1), side)
    top = torch.maximum(-lower - chord * lower, upper - chord * upper)
    top = top + 4 * rounding.own * (lower.abs() + upper.abs())
    below = torch.where(crosses, torch.where(upper > -lower, one, -one), side)
    return LinearRelaxation(below, None, chord, torch.where(crosses, top, 0 * one), crosses, -1.0)


def _slopes(layer: Fold, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return torch.ones_like(centre)


def _open(layer: Fold, boxes: list[Box]) -> Tensor:
    return _crosses(*boxes[0])


def _crosses(lower: Tensor, upper: Tensor) -> Tensor:
    return (lower < 0) & (upper > 0)


RULES: dict[type[Layer], LayerRules] = {
    Fold: LayerRules(
        forward=_forward,
        ball=EXACT,
        slopes=_slopes,
        relax=_lines,
        open=_open,
        kink_at_zero=True,
    )
}
