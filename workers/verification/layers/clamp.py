"""Layers that are min(max(z, low), high) with constants per element: exact in float32, monotone.

Clip, AtLeast, AtMost and ReLU-theta (Local-Lip, Huang et al. 2021) are one function; ``LIMITS``
has one row per layer. Where low > high it is the constant high, as each of them is deployed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.layers.activations import AtLeast, AtMost, Clip, ReLUTheta
from models.layers.kinds import Layer
from workers.verification.layers.linear_relaxation import LinearRelaxation
from workers.verification.numerics import slack
from workers.verification.rounding import Rounding

__all__ = ["LIMITS", "clamp", "clamp_kinks", "clamp_lines", "limits"]

#: low and high of a layer: numbers, tensors that broadcast, or None for no limit.
Limit = Tensor | float | None


def _clip(layer: Layer) -> tuple[Limit, Limit]:
    assert isinstance(layer, Clip)
    return layer.low, layer.high


def _at_least(layer: Layer) -> tuple[Limit, Limit]:
    assert isinstance(layer, AtLeast)
    return layer.value, None


def _at_most(layer: Layer) -> tuple[Limit, Limit]:
    assert isinstance(layer, AtMost)
    return None, layer.value


def _relu_theta(layer: Layer) -> tuple[Limit, Limit]:
    assert isinstance(layer, ReLUTheta)
    return 0.0, layer.theta


#: One row per layer of this form.
LIMITS: dict[type[Layer], Callable[[Layer], tuple[Limit, Limit]]] = {
    Clip: _clip,
    AtLeast: _at_least,
    AtMost: _at_most,
    ReLUTheta: _relu_theta,
}


def limits(layer: Layer, like: Tensor) -> tuple[Tensor, Tensor]:
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
    low, high = limits(layer, z)
    return torch.minimum(torch.maximum(z, low), high)


def clamp_kinks(layer: Layer, lower: Tensor, upper: Tensor) -> Tensor:
    """Where a kink lies strictly inside the box: elsewhere the layer is one line there."""
    low, high = limits(layer, lower)
    flat = (upper <= low) | (lower >= high)
    straight = (lower >= low) & (upper <= high)
    return (lower < upper) & ~flat & ~straight


def clamp_lines(
    layer: Layer, lower: Tensor, upper: Tensor, rule: str, rounding: Rounding
) -> LinearRelaxation:
    """Sound lines for every box.

    A slope is chosen first (any would do); its intercepts are the extremes of layer(z) - slope z
    over the box, which a piecewise linear function has at the ends or at its two kinks. Around an
    upper kink the line above is the chord up to it or horizontal, whichever is lower at the box's
    middle (CROWN's adaptive choice), the line below the chord; mirrored around a lower kink.
    ``cap`` takes the chord for both where it can.
    """
    low, high = limits(layer, lower)
    at_lower, at_upper = clamp(layer, lower), clamp(layer, upper)
    one, zero = torch.ones_like(lower), torch.zeros_like(lower)
    bent = clamp_kinks(layer, lower, upper)
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


def _slope(rise: Tensor, run: Tensor) -> Tensor:
    """rise / run in [0, 1]; 0 where there is no such number (any slope is sound)."""
    slope = rise / torch.where(run > 0, run, torch.ones_like(run))
    return slope.nan_to_num(0.0, 0.0, 0.0).clamp(0.0, 1.0)
