"""How a ball grows per step: affine maps by their norms, all other layers by their own rule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.layers.base import Layer
from workers.verification.graph.affine import Affine
from workers.verification.graph.graph_step import GraphStep, UnsupportedLayer
from workers.verification.layers.registry import rules_of
from workers.verification.layers.rules import SUM, Ball
from workers.verification.numerics import MANY, raised
from workers.verification.rounding import Rounding

__all__ = [
    "AFFINE_BALL",
    "ball_rule",
    "has_ball_rule",
    "joined_radius",
    "joined_slope",
    "joins_by_sum",
    "largest_input",
    "reads_norm",
    "steepest_slope",
]


def _affine(
    step: GraphStep, centre_norm: Tensor, rounding: Rounding
) -> tuple[float, Tensor | float]:
    """The operator norm of W plus what both evaluations round (``Affine.deployed_rounding``).

    factor |W|_2 + s, offset (s + s_own) |c| + what the bias costs, s and s_own the shares.
    """
    if not rounding.is_sound:
        return raised(step.norms.spectral), 0.0
    op = step.affine
    size = torch.Size(step.shape).numel() ** 0.5
    deployed, of_bias = op.deployed_rounding(step.norms, rounding)
    own, of_own_bias = op.own_rounding(step.norms, rounding)
    factor = step.norms.spectral + deployed
    offset = centre_norm * (deployed + own) + (of_bias + of_own_bias)
    offset = offset + rounding.underflow * (op.floor + step.norms.absolute) * size
    return raised(factor), raised(offset, MANY)


AFFINE_BALL = Ball(_affine)


def _ball_of(op: Affine | Layer) -> Ball | None:
    return AFFINE_BALL if isinstance(op, Affine) else rules_of(op).ball


def _known(step: GraphStep) -> Ball:
    ball = _ball_of(step.op)
    if ball is None:
        raise UnsupportedLayer(
            f"no rule says how the layer {step.kind!r} ({step.name}) moves a ball"
        )
    return ball


def ball_rule(
    step: GraphStep, centre_norm: Tensor, rounding: Rounding
) -> tuple[float, Tensor | float]:
    """(factor, offset): the radius after a step is at most factor * (joined radii) + offset.

    Joined: ``joined_radius`` of the inputs' radii. centre_norm: [batch], sum of the norms of the
    input centres. Raises UnsupportedLayer where the layer has no such rule.
    """
    return _known(step).growth(step, centre_norm, rounding)


def reads_norm(op: Affine | Layer) -> bool:
    """Whether the step's rule depends on the norm of the centre: it rounds in proportion."""
    ball = _ball_of(op)
    return ball is None or ball.reads_norm


def largest_input(op: Affine | Layer) -> float:
    """Norm of the step's inputs from which a layer may overflow on the way to its result."""
    ball = _ball_of(op)
    return math.inf if ball is None else ball.largest_input


def steepest_slope(step: GraphStep) -> float:
    """The step's factor without any rounding where it is above 1, else 1."""
    return 1.0 if isinstance(step.op, Affine) else max(1.0, _known(step).steepest(step.op))


def has_ball_rule(op: Affine | Layer) -> bool:
    """Whether ``ball_rule`` covers the step."""
    return _ball_of(op) is not None


def joined_radius(step: GraphStep, radii: Sequence[Tensor]) -> Tensor:
    """How far all inputs together may be from their centres, as ``ball_rule`` needs it, [batch]."""
    return _known(step).join.radius(radii)


def joined_slope(step: GraphStep, slopes: Sequence[float]) -> float:
    """The same for radii slope * epsilon + offset: joined offsets may be added (Minkowski)."""
    return _known(step).join.slope(slopes)


def joins_by_sum(step: GraphStep) -> bool:
    """Whether the moves of the inputs add up; else the root of the sum of their squares counts."""
    return _known(step).join is SUM
