"""ReLU, LeakyReLU and PReLU: max(z, slope z) for 0 <= slope <= 1, one slope or several."""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.kinds import LeakyReLU, PReLU, ReLU
from workers.verification.enclosure import Enclosure, box_to_ball
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.exact import EXACT, ONE_ROUNDING
from workers.verification.layers.rules import (
    MIN_SLOPE,
    Box,
    LayerRules,
    LinearRelaxation,
    TwoLines,
)
from workers.verification.numerics import nonzero, rough_norm, slack, up
from workers.verification.rounding import Rounding

__all__ = ["RULES", "crosses_zero"]


def _relu_forward(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    (state,) = inputs
    if state.lower is None or state.upper is None:
        return Enclosure(torch.relu(state.centre), state.radius, None, None, state.valid)
    result = Enclosure(
        torch.relu(state.centre),
        state.radius,
        torch.relu(state.lower),
        torch.relu(state.upper),
        state.valid,
    )
    return box_to_ball(result)


def _leaky_forward(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    (state,) = inputs
    layer = step.layer(Layer)
    once = rounding.single_operation
    tiny = 4 * rounding.underflow
    centre = layer(state.centre)
    radius = ONE_ROUNDING.grown(step, state.radius, rough_norm(state.centre), rounding)
    lower = upper = None
    if state.lower is not None and state.upper is not None:
        lower, upper = layer(state.lower), layer(state.upper)
        lower = lower - once * lower.clamp_max(0.0).abs() - tiny * (lower < 0)
        upper = upper + once * upper.clamp_max(0.0).abs() + tiny * (upper < 0)
    return box_to_ball(Enclosure(centre, radius, lower, upper, state.valid))


def _rising(centre: Tensor, upper: Tensor) -> Tensor:
    """Slopes of max(t, 0), rounded up.

    a <= 0 < u: max(t, 0) / (t - a) is 0 for t <= 0 and increases on (0, u], so it is at most
    u / (u - a). a <= 0 and u <= 0: both values are exactly 0. a > 0: 1, as for every 1-Lipschitz
    function. The computed quotient is off by three roundings; where it is not finite, 1.
    """
    width = upper - centre
    slope = (upper / width).mul_(up(3, centre.dtype)).clamp_(MIN_SLOPE, 1.0)
    # Comparisons with NaN are false: what is not a number keeps the slope 1.
    slope = torch.where(torch.isfinite(width) & (centre <= 0), slope, torch.ones_like(slope))
    return slope.masked_fill_((upper <= 0) & (centre <= 0), 0.0)


def _relu_slopes(layer: ReLU, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return _rising(centre, upper)


def _slope(layer: LeakyReLU | PReLU, like: Tensor) -> float | Tensor:
    """The slope below 0: one number, or float32 numbers, exactly, that broadcast."""
    if isinstance(layer, LeakyReLU):
        return layer.slope
    return layer.slope.detach().to(device=like.device, dtype=like.dtype)


def _leaky_slopes(layer: LeakyReLU | PReLU, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """alpha + (1 - alpha) times ReLU's slope: phi(t) = alpha t + (1 - alpha) max(t, 0)."""
    below = _slope(layer, centre)
    slope = _rising(centre, upper).mul_(1.0 - below).add_(below)
    slope.mul_(up(7, centre.dtype))
    return slope.clamp_(MIN_SLOPE, 1.0)


def lower_slopes(lower: Tensor, upper: Tensor, least: float | Tensor, rule: str) -> Tensor:
    """Slope of the line through the origin below a (leaky) ReLU on unstable [lower, upper].

    ``crown``: 1 where u > -l, else the least slope (Zhang et al. 2018, adaptive). ``cap``: the
    chord's slope (Wong and Kolter 2018; also DeepZ).
    """
    if rule == "cap":
        chord = (upper - least * lower) / nonzero(upper - lower)
        return _between(chord, least)
    one = torch.ones_like(upper)
    return torch.where(upper > -lower, one, least * one)


def _between(slope: Tensor, least: float | Tensor) -> Tensor:
    """Within [least, 1]."""
    if isinstance(least, Tensor):
        return torch.maximum(slope, least).clamp_max(1.0)
    return slope.clamp(least, 1.0)


def _lines(
    lower: Tensor, upper: Tensor, least: float | Tensor, rule: str, rounding: Rounding
) -> LinearRelaxation:
    """max(z, least z) for 0 <= least <= 1. Free slopes keep to the largest of several ``least``."""
    one = torch.ones_like(upper)
    unstable = (lower < 0) & (upper > 0)
    active = lower >= 0
    width = torch.where(unstable, upper - lower, one)
    chord = torch.where(unstable, (upper - least * lower) / width, one)
    # The rounded slope is taken as it is: for any slope the line above must be above both ends.
    chord = _between(chord, least)
    above_low = (least - chord) * lower
    above_high = (1.0 - chord) * upper
    lost = slack(lower.abs() + upper.abs(), 6 * rounding.own, rounding)
    intercept = torch.maximum(above_low, above_high) + lost
    slope = torch.where(active, one, torch.where(unstable, chord, least * one))
    # The chord from above, where a stable neuron has no quotient whose gradient could be NaN.
    below = chord if rule == "cap" else lower_slopes(lower, upper, least, rule)
    low = torch.where(active, one, torch.where(unstable, below, least * one))
    zero = torch.zeros_like(upper)
    lower_intercept = None
    upper_intercept = torch.where(unstable, intercept, zero)
    highest = float(torch.as_tensor(least).max())
    if highest > 0.0:
        lost = rounding.single_operation * lower.clamp_max(0.0).abs()
        lost = lost + 4 * rounding.underflow
        upper_intercept = upper_intercept + torch.where(lower < 0, lost, zero)
        lower_intercept = -torch.where(lower < 0, lost, zero)
    return LinearRelaxation(low, lower_intercept, slope, upper_intercept, unstable, highest)


def _relu_lines(
    layer: ReLU, lower: Tensor, upper: Tensor, rule: str, rounding: Rounding
) -> LinearRelaxation:
    return _lines(lower, upper, 0.0, rule, rounding)


def _leaky_lines(
    layer: LeakyReLU | PReLU, lower: Tensor, upper: Tensor, rule: str, rounding: Rounding
) -> LinearRelaxation:
    return _lines(lower, upper, _slope(layer, lower), rule, rounding)


def _relu_sides(layer: ReLU, lower: Tensor, upper: Tensor, rounding: Rounding) -> TwoLines:
    return TwoLines(0.0, 1.0)


def _leaky_sides(
    layer: LeakyReLU | PReLU, lower: Tensor, upper: Tensor, rounding: Rounding
) -> TwoLines:
    error = slack(lower.clamp_max(0.0).abs(), rounding.single_operation, rounding)
    return TwoLines(_slope(layer, lower), 1.0, error + 4 * rounding.underflow)


def crosses_zero(layer: Layer, boxes: list[Box]) -> Tensor:
    """Where 0 lies strictly inside the box of the only input."""
    ((lower, upper),) = boxes
    return (lower < 0) & (upper > 0)


_LEAKY = LayerRules(
    forward=_leaky_forward,
    ball=ONE_ROUNDING,
    slopes=_leaky_slopes,
    relax=_leaky_lines,
    two_lines=_leaky_sides,
    open=crosses_zero,
    kink_at_zero=True,
    slopes_in_unit_interval=True,
)
RULES: dict[type[Layer], LayerRules] = {
    LeakyReLU: _LEAKY,
    PReLU: _LEAKY,
    ReLU: LayerRules(
        forward=_relu_forward,
        ball=EXACT,
        slopes=_relu_slopes,
        relax=_relu_lines,
        two_lines=_relu_sides,
        open=crosses_zero,
        kink_at_zero=True,
        slopes_in_unit_interval=True,
        splits=True,
    ),
}
