"""Softplus: what the deployed kernel may be off by, enclosures, slopes, lines above and below.

s(z) = log(1 + exp z) is convex and increasing, its derivative is the sigmoid, its second derivative
at most 1/4. A deployed value may be off by ``KERNEL_ERROR`` and one rounding of what it is added
to; since s' is at least 1/2 where that rounding counts, s(z) -+ the error still increases.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers.activations import Softplus
from models.layers.base import Layer
from workers.verification.enclosure import Enclosure, box_to_ball
from workers.verification.graph.graph_step import GraphStep, UnsupportedLayer
from workers.verification.layers.rules import MIN_SLOPE, Ball, Box, LayerRules, LinearRelaxation
from workers.verification.numerics import (
    MANY,
    raised,
    rough_norm,
    rounded_down,
    rounded_up,
    up,
)
from workers.verification.rounding import Rounding

__all__ = ["KERNEL_ERROR", "RULES", "SOFTPLUS_BALL", "curve", "softplus", "softplus_error"]

#: Largest absolute error of a deployed float32 softplus at any finite float32 z, beside four unit
#: roundoffs of max(z, 0). A STATED bound of the runtime's kernel, not a proved one: ONNX Runtime
#: 1.31 on x86 is off by at most 1.4e-7 beside a quarter of that, and written as log(1 + exp(z))
#: beside half of it (docs/results.md); a test samples all finite numbers.
KERNEL_ERROR = 1e-6

#: Absolute error of this module's float64 evaluation, beside two unit roundoffs of max(z, 0).
_OWN_ERROR = 1e-14


def curve(z: Tensor) -> Tensor:
    """s(z) for float64 z, up to ``_OWN_ERROR``; no exponential overflows."""
    return z.clamp_min(0.0) + torch.log1p(torch.exp(-z.abs()))


def softplus(layer: Softplus, z: Tensor) -> Tensor:
    """The layer's value, evaluated in float64 and rounded to z's dtype."""
    if layer.beta != 1.0:
        # What is deployed has the factor as layers of its own.
        raise UnsupportedLayer("a softplus with a factor of its own stands in a deployed network")
    return curve(z.to(torch.float64)).to(z.dtype)


def softplus_error(rounding: Rounding) -> tuple[float, float]:
    """(absolute, relative): a deployed value is within absolute + relative max(z, 0) of ``curve``
    at the same z, and of ``softplus``; s(z) <= max(z, 0) + log 2."""
    if not rounding.is_sound:
        return 0.0, 0.0
    relative = 4 * rounding.deployed + 4 * rounding.own
    return raised(KERNEL_ERROR + _OWN_ERROR + relative, MANY), raised(relative, MANY)


def _open(layer: Layer, boxes: list[Box]) -> Tensor:
    """Where the curve bends enough over the box for its bounds to matter."""
    ((lower, upper),) = boxes
    return (torch.sigmoid(upper) - torch.sigmoid(lower)) * (upper - lower) > 1e-4


def _lines(
    layer: Layer, lower: Tensor, upper: Tensor, rule: str, rounding: Rounding
) -> LinearRelaxation:
    """The chord above, a tangent below: at the middle of the box (``crown``) or the chord's slope.

    A slope is chosen first (any would do) and rounded to the dtype; its intercepts are the extremes
    of s(z) - slope z over the box. s is convex, so the largest is at an end, and the least where s'
    is the slope, z = log(slope / (1 - slope)), or at the end next to it. A place that is off by
    1e-13 moves the least value by less than 1e-26.
    """
    dtype = lower.dtype
    low, high = lower.to(torch.float64), upper.to(torch.float64)
    at_low, at_high = curve(low), curve(high)
    width = torch.where(high > low, high - low, torch.ones_like(low))
    chord = ((at_high - at_low) / width).nan_to_num(0.5, 1.0, 0.0)
    chord = torch.where(high > low, chord, torch.sigmoid(low)).clamp(0.0, 1.0)
    tangent = chord if rule == "cap" else torch.sigmoid(0.5 * low + 0.5 * high)
    above, below = chord.to(dtype), tangent.to(dtype)
    slope = above.to(torch.float64)
    highest = torch.maximum(at_low - slope * low, at_high - slope * high)
    slope = below.to(torch.float64)
    touching = torch.maximum(torch.minimum(torch.logit(slope), high), low)
    lowest = curve(touching) - slope * touching
    lowest = torch.minimum(lowest, torch.minimum(at_low - slope * low, at_high - slope * high))
    absolute, relative = softplus_error(rounding)
    reach = torch.maximum(low.abs(), high.abs())
    lost = (up(3) - 1.0) * rounding.is_sound * reach
    error = absolute + relative * high.clamp_min(0.0) + lost
    return LinearRelaxation(
        below,
        rounded_down(lowest - error, dtype),
        above,
        rounded_up(highest + error, dtype),
        torch.zeros_like(lower, dtype=torch.bool),
        0.0,
    )


def _slopes(layer: Layer, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Anchored slopes: (s(t) - s(a)) / (t - a) increases in t, so it is largest at t = u.

    Computed as the chord of [a, u], or where that would cancel as s'(max(a, u)), which is no less.
    """
    a, u = centre.to(torch.float64), upper.to(torch.float64)
    top = torch.maximum(a, u)
    steepest = raised(torch.sigmoid(top))
    width = u - a
    # Its error: two values' roundings over the width.
    wide = width > 1e-3 * (1.0 + a.abs() + u.abs())
    chord = (curve(u) - curve(a)) / torch.where(wide, width, 1.0) + 1e-10
    slope = torch.where(wide, torch.minimum(chord, steepest), steepest)
    slope = torch.where(torch.isfinite(slope), slope, 1.0)
    return rounded_up(slope, centre.dtype).clamp(MIN_SLOPE, 1.0)


def _forward(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    """Monotone in real arithmetic, the kernel's error and ours on top."""
    (state,) = inputs
    layer = step.layer(Softplus)
    absolute, relative = softplus_error(rounding)
    # Two more roundings of the ends themselves.
    relative = 2 * relative
    lower = upper = None
    if state.lower is not None and state.upper is not None:
        lower, upper = softplus(layer, state.lower), softplus(layer, state.upper)
        lower = lower - relative * state.lower.clamp_min(0.0) - 2 * absolute
        upper = upper + relative * state.upper.clamp_min(0.0) + 2 * absolute
    centre = softplus(layer, state.centre)
    radius = SOFTPLUS_BALL.grown(step, state.radius, rough_norm(state.centre), rounding)
    return box_to_ball(Enclosure(centre, radius, lower, upper, state.valid))


def _growth(step: GraphStep, centre_norm: Tensor, rounding: Rounding) -> tuple[float, Tensor]:
    """1-Lipschitz; the kernel at a value z within the radius and ours at the centre may be off by
    absolute + relative |z| each (``softplus_error`` counts both). A value of it is at most 1 more
    than |z|, which the room below the largest float32 number covers."""
    absolute, relative = softplus_error(rounding)
    size = torch.Size(step.shape).numel() ** 0.5
    return 1.0 + 2 * relative, 2 * relative * centre_norm + raised(2 * absolute * size)


SOFTPLUS_BALL = Ball(_growth)

RULES: dict[type[Layer], LayerRules] = {
    Softplus: LayerRules(
        value=softplus,
        forward=_forward,
        ball=SOFTPLUS_BALL,
        slopes=_slopes,
        relax=_lines,
        open=_open,
        slopes_in_unit_interval=True,
    )
}
