"""What the enclosure of a value is, and how a ball grows per step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.activations import MaxMin
from models.layers.joins import Concat, Maximum, Minimum, Slice
from models.layers.kinds import Add, Layer, LeakyReLU, MaxPool2d, Pad, Permute, ReLU, Reshape
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import GraphStep, UnsupportedLayer
from workers.verification.layers.clamp import LIMITS
from workers.verification.layers.s_shaped import S_SHAPED, s_shaped_error
from workers.verification.numerics import euclidean_norm
from workers.verification.rounding import Rounding, unit_roundoff

__all__ = [
    "BALL_RULES",
    "Enclosure",
    "ball_rule",
    "box_to_ball",
    "grown",
    "has_ball_rule",
    "joined_radius",
    "joined_slope",
    "reads_norm",
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


BallRule = Callable[[GraphStep, Tensor, Rounding], tuple[float, Tensor | float]]


def _affine(
    step: GraphStep, centre_norm: Tensor, rounding: Rounding
) -> tuple[float, Tensor | float]:
    """The operator norm of W plus the roundings of both evaluations, bounded by the norm of |W|.

    factor |W|_2 + g | |W| |_2, offset (g + g_own) (| |W| |_2 |c| + |b|).
    """
    op = step.op
    assert isinstance(op, Affine)
    assert step.norms is not None
    size = torch.Size(step.shape).numel() ** 0.5
    deployed, own = rounding.deployed_gamma(op.terms), rounding.own_gamma(op.terms)
    absolute = step.norms.absolute
    factor = step.norms.spectral + (deployed * absolute if rounding.is_sound else 0.0)
    offset = centre_norm * ((deployed + own) * absolute) + (deployed + own) * op.bias_norm()
    offset = offset + rounding.underflow * (op.floor + absolute) * size
    return factor * (1.0 + 1e-14), offset * (1.0 + 1e-10)


def _max_pool(
    step: GraphStep, centre_norm: Tensor, rounding: Rounding
) -> tuple[float, Tensor | float]:
    return step.overlap**0.5 * (1.0 + 1e-12), 0.0


def _rounded(
    step: GraphStep, centre_norm: Tensor, rounding: Rounding
) -> tuple[float, Tensor | float]:
    """1-Lipschitz with one rounding: LeakyReLU, sums."""
    both = 3 * (rounding.deployed + rounding.own)
    size = torch.Size(step.shape).numel() ** 0.5
    return 1.0 + both, both * centre_norm + 4 * rounding.underflow * size


def _s_shaped(
    step: GraphStep, centre_norm: Tensor, rounding: Rounding
) -> tuple[float, Tensor | float]:
    assert not isinstance(step.op, Affine)
    size = torch.Size(step.shape).numel() ** 0.5
    return S_SHAPED[type(step.op)].steepest, s_shaped_error(rounding) * size * (1.0 + 1e-12)


def _exact(
    step: GraphStep, centre_norm: Tensor, rounding: Rounding
) -> tuple[float, Tensor | float]:
    """Exact in float32 and 1-Lipschitz."""
    return 1.0, 0.0


#: One row per layer that is not affine: nothing is assumed of a layer without one. Where the layer
#: rounds, |layer(z)| <= max(1, factor) |z| holds besides (``lipschitz`` keeps it from overflowing).
BALL_RULES: dict[type[Layer], BallRule] = {
    MaxPool2d: _max_pool,
    **dict.fromkeys((LeakyReLU, Add), _rounded),
    **dict.fromkeys(S_SHAPED, _s_shaped),
    **dict.fromkeys((ReLU, MaxMin, Maximum, Minimum, *LIMITS), _exact),
    **dict.fromkeys((Concat, Slice, Reshape, Permute, Pad), _exact),
}


def ball_rule(
    step: GraphStep, centre_norm: Tensor, rounding: Rounding
) -> tuple[float, Tensor | float]:
    """(factor, offset): the radius after a step is at most factor * (joined radii) + offset.

    Joined: ``joined_radius`` of the inputs' radii. centre_norm: [batch], sum of the norms of the
    input centres. Raises UnsupportedLayer where no row covers the layer.
    """
    op = step.op
    if isinstance(op, Affine):
        return _affine(step, centre_norm, rounding)
    if type(op) not in BALL_RULES:
        raise UnsupportedLayer(f"no rule says how the layer {op.kind!r} ({step.name}) moves a ball")
    return BALL_RULES[type(op)](step, centre_norm, rounding)


#: Rules that do not read the centre's norm, so that it need not be computed. They cannot overflow.
NORMLESS = (_max_pool, _s_shaped, _exact)


def reads_norm(op: Affine | Layer) -> bool:
    """Whether the step's rule depends on the norm of the centre: it rounds in proportion."""
    return isinstance(op, Affine) or BALL_RULES.get(type(op)) not in NORMLESS


def has_ball_rule(op: Affine | Layer) -> bool:
    """Whether ``ball_rule`` covers the step."""
    return isinstance(op, Affine) or type(op) in BALL_RULES


def joined_radius(step: GraphStep, radii: Sequence[Tensor]) -> Tensor:
    """How far all inputs together may be from their centres, as ``ball_rule`` needs it, [batch]."""
    if isinstance(step.op, ROOT_OF_SQUARES):
        return functools.reduce(torch.hypot, radii) * (1.0 + 1e-14 * len(radii))
    return torch.stack(list(radii)).sum(0)


def joined_slope(step: GraphStep, slopes: Sequence[float]) -> float:
    """The same for radii slope * epsilon + offset: joined offsets may be added (Minkowski)."""
    if isinstance(step.op, ROOT_OF_SQUARES):
        return math.hypot(*slopes) * (1.0 + 1e-14)
    return sum(slopes)


def grown(step: GraphStep, radius: Tensor, centre_norm: Tensor, rounding: Rounding) -> Tensor:
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
