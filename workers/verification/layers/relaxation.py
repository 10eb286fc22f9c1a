"""Linear envelopes of the layers that are not affine: low(z) <= layer(z) <= high(z) over a box.

Each layer class has one row in ``RELAXATIONS``. Envelopes hold for the DEPLOYED float32 layer: its
own rounding, where it has any, is part of the intercepts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.layers.kinds import Layer, LeakyReLU, ReLU
from workers.verification.layers.clamp import LIMITS, clamp_kinks, clamp_lines
from workers.verification.layers.linear_relaxation import LinearRelaxation
from workers.verification.layers.s_shaped import S_SHAPED, s_shaped_lines, s_shaped_moves
from workers.verification.numerics import slack
from workers.verification.rounding import Rounding

__all__ = ["RELAXATIONS", "LinearRelaxation", "lower_slopes", "open_neurons"]


def lower_slopes(lower: Tensor, upper: Tensor, least: float, rule: str) -> Tensor:
    """Slope of the line through the origin below a (leaky) ReLU on unstable [lower, upper].

    ``crown``: 1 where u > -l, else the least slope (Zhang et al. 2018, adaptive). ``cap``: the
    chord's slope (Wong and Kolter 2018; also DeepZ).
    """
    if rule == "cap":
        chord = (upper - least * lower) / (upper - lower).clamp_min(1e-300)
        return chord.clamp(least, 1.0)
    one = torch.ones_like(upper)
    return torch.where(upper > -lower, one, least * one)


def _piecewise(
    lower: Tensor, upper: Tensor, least: float, rule: str, rounding: Rounding
) -> LinearRelaxation:
    """max(z, least z) for 0 <= least < 1."""
    one = torch.ones_like(upper)
    unstable = (lower < 0) & (upper > 0)
    active = lower >= 0
    width = torch.where(unstable, upper - lower, one)
    chord = torch.where(unstable, (upper - least * lower) / width, one)
    # Valid for any slope: the line must be above both ends (methods-linf 7, production rule 3).
    chord = chord.clamp(least, 1.0)
    above_low = (least - chord) * lower
    above_high = (1.0 - chord) * upper
    lost = slack(lower.abs() + upper.abs(), 6 * rounding.own, rounding)
    intercept = torch.maximum(above_low, above_high) + lost
    slope = torch.where(active, one, torch.where(unstable, chord, least * one))
    low = torch.where(
        active, one, torch.where(unstable, lower_slopes(lower, upper, least, rule), least * one)
    )
    zero = torch.zeros_like(upper)
    lower_intercept = None
    upper_intercept = torch.where(unstable, intercept, zero)
    if least > 0.0:
        lost = 3 * (rounding.deployed + rounding.own) * lower.clamp_max(0.0).abs()
        lost = lost + 4 * rounding.underflow
        upper_intercept = upper_intercept + torch.where(lower < 0, lost, zero)
        lower_intercept = -torch.where(lower < 0, lost, zero)
    return LinearRelaxation(low, lower_intercept, slope, upper_intercept, unstable, least)


def _relu(
    layer: Layer, lower: Tensor, upper: Tensor, rule: str, rounding: Rounding
) -> LinearRelaxation:
    return _piecewise(lower, upper, 0.0, rule, rounding)


def _leaky(
    layer: Layer, lower: Tensor, upper: Tensor, rule: str, rounding: Rounding
) -> LinearRelaxation:
    assert isinstance(layer, LeakyReLU)
    return _piecewise(lower, upper, layer.slope, rule, rounding)


Relax = Callable[[Layer, Tensor, Tensor, str, Rounding], LinearRelaxation]

#: One row per elementwise activation.
RELAXATIONS: dict[type[Layer], Relax] = {
    ReLU: _relu,
    LeakyReLU: _leaky,
    **dict.fromkeys(LIMITS, clamp_lines),
    **dict.fromkeys(S_SHAPED, s_shaped_lines),
}


def open_neurons(layer: Layer, lower: Tensor, upper: Tensor) -> Tensor:
    """Where a tighter box of the layer's input would make its lines tighter, bool."""
    if type(layer) in LIMITS:
        return clamp_kinks(layer, lower, upper)
    if type(layer) in S_SHAPED:
        return s_shaped_moves(layer, lower, upper)
    return (lower < 0) & (upper > 0)
