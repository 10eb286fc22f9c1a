"""Layers that are min(max(z, low), high) with constants per element: exact in float32, monotone.

Clip, AtLeast, AtMost and ReLU-theta (Local-Lip, Huang et al. 2021) are one function; ``LIMITS``
has one row per layer, and all have the same rules. Where low > high it is the constant high, as
each of them is deployed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.layers.activations import AtLeast, AtMost, Clip, ReLUTheta
from models.layers.base import Layer
from workers.verification.layers.exact import EXACT, monotone
from workers.verification.layers.rules import (
    MIN_SLOPE,
    Box,
    LayerRules,
    LinearRelaxation,
    Secants,
)
from workers.verification.numerics import slack, up
from workers.verification.rounding import Rounding

__all__ = ["LIMITS", "RULES", "clamp", "clamped_slopes"]

#: low and high of a layer: numbers, tensors that broadcast, or None for no limit.
Limit = Tensor | float | None


#: One row per layer of this form: (low, high).
LIMITS: dict[type[Layer], Callable[..., tuple[Limit, Limit]]] = {
    Clip: lambda layer: (layer.low, layer.high),
    AtLeast: lambda layer: (layer.value, None),
    AtMost: lambda layer: (None, layer.value),
    ReLUTheta: lambda layer: (0.0, layer.theta),
}


def _limits(layer: Layer, like: Tensor) -> tuple[Tensor, Tensor]:
    """low <= high as tensors like ``like``; float32 constants stay exact in float64."""

    def tensor(limit: Limit, missing: float) -> Tensor:
        if isinstance(limit, Tensor):
            return limit.detach().to(like.device, like.dtype)
        return like.new_tensor(missing if limit is None else limit)

    low, high = LIMITS[type(layer)](layer)
    top = tensor(high, torch.inf)
    return torch.minimum(tensor(low, -torch.inf), top), top


def clamp(layer: Layer, z: Tensor) -> Tensor:
    """The layer's value, without any rounding, in z's dtype."""
    low, high = _limits(layer, z)
    return torch.minimum(torch.maximum(z, low), high)


def _kinks(layer: Layer, lower: Tensor, upper: Tensor) -> Tensor:
    """Where a kink lies strictly inside the box: elsewhere the layer is one line there."""
    low, high = _limits(layer, lower)
    flat = (upper <= low) | (lower >= high)
    straight = (lower >= low) & (upper <= high)
    return (lower < upper) & ~flat & ~straight


def _lines(
    layer: Layer, lower: Tensor, upper: Tensor, rule: str, rounding: Rounding
) -> LinearRelaxation:
    """Sound lines for every box.

    A slope is chosen first (any would do); its intercepts are the extremes of layer(z) - slope z
    over the box, which a piecewise linear function has at the ends or at its two kinks. Around an
    upper kink the line above is the chord up to it or horizontal, whichever is lower at the box's
    middle (CROWN's adaptive choice), the line below the chord; mirrored around a lower kink.
    ``cap`` takes the chord for both where it can.
    """
    low, high = _limits(layer, lower)
    at_lower, at_upper = clamp(layer, lower), clamp(layer, upper)
    one, zero = torch.ones_like(lower), torch.zeros_like(lower)
    bent = _kinks(layer, lower, upper)
    straight = (lower >= low) & (upper <= high)
    chord = _slope(at_upper - at_lower, upper - lower)
    above, below = chord, chord
    if rule != "cap":
        middle = (lower + upper) * 0.5
        rising = _slope(high - at_lower, high - lower)
        above = torch.where(upper > high, torch.where(middle < high, rising, zero), chord)
        rising = _slope(at_upper - low, upper - low)
        below = torch.where(lower < low, torch.where(middle > low, rising, zero), chord)
    above = torch.where(bent, above, torch.where(straight, one, zero))
    below = torch.where(bent, below, torch.where(straight, one, zero))
    # Kinks outside the box move to its ends; the function is evaluated there in any case.
    points = [lower, upper, torch.clamp(low, lower, upper), torch.clamp(high, lower, upper)]
    values = [clamp(layer, point) for point in points]
    highest = torch.stack([v - above * p for v, p in zip(values, points, strict=True)]).amax(0)
    lowest = torch.stack([v - below * p for v, p in zip(values, points, strict=True)]).amin(0)
    reach = torch.maximum(lower.abs(), upper.abs())
    size = torch.maximum(at_lower.abs(), at_upper.abs()) + reach
    lost = torch.where(bent, slack(size, 6 * rounding.own, rounding), zero)
    highest = torch.where(straight, zero, highest + lost)
    lowest = torch.where(straight, zero, lowest - lost)
    return LinearRelaxation(below, lowest, above, highest, torch.zeros_like(bent), 0.0)


def _secants(layer: Layer, lower: Tensor, upper: Tensor, rounding: Rounding) -> Secants:
    """1 between the limits, 0 beyond one of them, anything between across a kink."""
    low, high = _limits(layer, lower)
    inside = ((lower >= low) & (upper <= high)).to(lower.dtype)
    beyond = ((upper <= low) | (lower >= high)).to(lower.dtype)
    return Secants(inside, torch.maximum(inside, 1.0 - beyond))


def _slope(rise: Tensor, run: Tensor) -> Tensor:
    """rise / run in [0, 1]; 0 where there is no such number (any slope is sound)."""
    slope = rise / torch.where(run > 0, run, torch.ones_like(run))
    return slope.nan_to_num(0.0, 0.0, 0.0).clamp(0.0, 1.0)


def clamped_slopes(
    centre: Tensor, lower: Tensor, upper: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Slopes of min(max(t, low), high) for low <= high, rounded up; either may be infinite.

    a <= low: as for ReLU, with min(u, high) for u (beyond high only |t - a| grows).
    a >= high: with m = max(l, low), (high - t) / (a - t) falls on [m, high), so it is at most
    (high - m) / (a - m); below low only |t - a| grows. Elsewhere 1. Where box and centre lie on one
    flat side, both values are the same constant: 0.
    """
    # Two differences and a quotient.
    raise_by = up(3, centre.dtype)
    one = torch.ones_like(centre)
    top, bottom = torch.minimum(upper, high), torch.maximum(lower, low)
    rise, fall = top - centre, centre - bottom
    rising = ((top - low) / rise).mul_(raise_by).clamp_(MIN_SLOPE, 1.0)
    falling = ((high - bottom) / fall).mul_(raise_by).clamp_(MIN_SLOPE, 1.0)
    slope = torch.where((centre <= low) & torch.isfinite(rise) & (rise > 0), rising, one)
    slope = torch.where((centre >= high) & torch.isfinite(fall) & (fall > 0), falling, slope)
    slope = slope.masked_fill((upper <= low) & (centre <= low), 0.0)
    return slope.masked_fill_((lower >= high) & (centre >= high), 0.0)


def _slopes(layer: Layer, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Clip, AtLeast, AtMost, ReLU-theta."""
    low, high = (limit.expand_as(centre) for limit in _limits(layer, centre))
    return clamped_slopes(centre, lower, upper, low, high)


def _open(layer: Layer, boxes: list[Box]) -> Tensor:
    return _kinks(layer, *boxes[0])


RULES: dict[type[Layer], LayerRules] = dict.fromkeys(
    LIMITS,
    LayerRules(
        value=clamp,
        forward=monotone(EXACT, clamp),
        ball=EXACT,
        slopes=_slopes,
        relax=_lines,
        secants=_secants,
        open=_open,
        slopes_in_unit_interval=True,
    ),
)
