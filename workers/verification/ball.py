"""What the enclosure of a value is, and how a ball grows per step."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.activations import Sigmoid, Tanh
from models.joins import Concat, Maximum, Minimum
from models.layers import Add, LeakyReLU, MaxPool2d
from workers.verification.affine import Affine
from workers.verification.numerics import euclidean_norm
from workers.verification.program import Step
from workers.verification.rounding import Rounding, unit_roundoff
from workers.verification.smooth import SMOOTH, smooth_error

__all__ = [
    "Enclosure",
    "ball_rule",
    "box_to_ball",
    "grown",
    "joined_radius",
    "joined_slope",
]

#: Boxes of more numbers than this hardly ever have a corner nearer than the ball's radius.
CORNER_SIZE = 2048

#: Layers of several inputs whose output moves by at most the root of the sum of the squares of the
#: inputs' moves: concatenation keeps them side by side, and per element |max(a, b) - max(a', b')|
#: <= max(|a - a'|, |b - b'|). Other layers add the moves up.
ROOT_OF_SQUARES = (Concat, Maximum, Minimum)


@dataclass
class Enclosure:
    """centre, lower, upper [batch, *shape]; radius [batch] float64; valid [batch] bool.

    round: the box is the ball's own (an l2 region's): through a wide affine map the ball alone is
    tighter, and the interval product can be saved.

    lower and upper are None when only the ball is carried; radius is infinite when only the box is.
    ``valid`` falls where the deployed float32 may overflow: nothing may be concluded there. What is
    not finite stays so (NaN) to the end, where nothing is concluded from it.
    """

    centre: Tensor
    radius: Tensor
    lower: Tensor | None
    upper: Tensor | None
    valid: Tensor
    round: bool = False


def ball_rule(step: Step, centre_norm: Tensor, rounding: Rounding) -> tuple[float, Tensor | float]:
    """(factor, offset): the radius after a step is at most factor * (joined radii) + offset.

    Joined: ``joined_radius`` of the inputs' radii. centre_norm: [batch], sum of the norms of the
    input centres. For an affine step the factor is |W|_2 + g | |W| |_2 and the offset
    (g + g_own) (| |W| |_2 |c| + |b|): the operator norm of W plus the roundings of both
    evaluations, bounded by the norm of the entrywise absolute value.
    """
    op = step.op
    size = torch.Size(step.shape).numel() ** 0.5
    if isinstance(op, Affine):
        assert step.norms is not None
        deployed, own = rounding.deployed_gamma(op.terms), rounding.own_gamma(op.terms)
        absolute = step.norms.absolute
        factor = step.norms.spectral + (deployed * absolute if rounding.is_sound else 0.0)
        offset = centre_norm * ((deployed + own) * absolute) + (deployed + own) * op.bias_norm()
        offset = offset + rounding.underflow * (op.floor + absolute) * size
        return factor * (1.0 + 1e-14), offset * (1.0 + 1e-10)
    if isinstance(op, MaxPool2d):
        return step.overlap**0.5 * (1.0 + 1e-12), 0.0
    if isinstance(op, LeakyReLU | Add):
        both = 3 * (rounding.deployed + rounding.own)
        return 1.0 + both, both * centre_norm + 4 * rounding.underflow * size
    if isinstance(op, Sigmoid | Tanh):
        return SMOOTH[type(op)].steepest, smooth_error(rounding) * size * (1.0 + 1e-12)
    # Exact in float32 and 1-Lipschitz: ReLU, clamps, MaxMin, maxima, cuts and rearrangements.
    return 1.0, 0.0


def joined_radius(step: Step, radii: Sequence[Tensor]) -> Tensor:
    """How far all inputs together may be from their centres, as ``ball_rule`` needs it, [batch]."""
    if isinstance(step.op, ROOT_OF_SQUARES):
        return functools.reduce(torch.hypot, radii) * (1.0 + 1e-14 * len(radii))
    return torch.stack(list(radii)).sum(0)


def joined_slope(step: Step, slopes: Sequence[float]) -> float:
    """The same for radii slope * epsilon + offset: joined offsets may be added (Minkowski)."""
    if isinstance(step.op, ROOT_OF_SQUARES):
        return math.hypot(*slopes) * (1.0 + 1e-14)
    return sum(slopes)


def grown(step: Step, radius: Tensor, centre_norm: Tensor, rounding: Rounding) -> Tensor:
    """The radius after a step, [batch] float64, from the joined radius before it."""
    factor, offset = ball_rule(step, centre_norm, rounding)
    result = (factor * radius + offset) * (1.0 + 1e-14)
    # Without a ball the radius stays infinite (0 * inf is no number).
    return torch.where(torch.isinf(radius), radius, result)


def box_to_ball(state: Enclosure) -> Enclosure:
    """radius <- min(radius, distance from the centre to the farthest corner of the box)."""
    if state.lower is None or state.upper is None or bool(torch.isinf(state.radius).all()):
        return state
    if state.lower[0].numel() > CORNER_SIZE:
        return state
    corner = torch.maximum(state.upper - state.centre, state.centre - state.lower)
    slack = 8 * unit_roundoff(corner.dtype)
    state.radius = torch.minimum(state.radius, euclidean_norm(corner) * (1.0 + slack))
    return state
