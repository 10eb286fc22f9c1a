"""Anchored slopes: how far an activation can carry a change away from the centre's own value.

For a fixed centre a and every deployed value t in [l, u] the slope s satisfies, elementwise,
|phi(t) - phi(a)| <= s |t - a| in real arithmetic (methods-lipschitz 2.5, 2): never more than 1, and
0 where nothing can change. Layers that sort pairs have one slope for both, and the inequality holds
for the norms of the pairs. A further activation is one function and one row of ``SLOPES``; what its
own float32 evaluation adds is its ``ball_rule``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.layers.activations import MaxMin
from models.layers.kinds import Layer, LeakyReLU, ReLU
from workers.verification.layers.clamp import LIMITS, limits
from workers.verification.rounding import unit_roundoff

__all__ = ["SLOPES", "anchored_slopes", "paired_slopes"]

#: Slopes that are not zero are at least this, so that no product of them underflows unseen.
LEAST = 1e-30


def _rising(centre: Tensor, upper: Tensor) -> Tensor:
    """Slopes of max(t, 0), rounded up.

    a <= 0 < u: max(t, 0) / (t - a) is 0 for t <= 0 and increases on (0, u], so it is at most
    u / (u - a). a <= 0 and u <= 0: both values are exactly 0. a > 0: 1, as for every 1-Lipschitz
    function. The computed quotient is off by three roundings; where it is not finite, 1.
    """
    width = upper - centre
    slope = (upper / width).mul_(1.0 + 8 * unit_roundoff(centre.dtype)).clamp_(LEAST, 1.0)
    # Comparisons with NaN are false: what is not a number keeps the slope 1.
    slope = torch.where(torch.isfinite(width) & (centre <= 0), slope, torch.ones_like(slope))
    return slope.masked_fill_((upper <= 0) & (centre <= 0), 0.0)


def _relu(layer: Layer, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return _rising(centre, upper)


def _leaky_relu(layer: Layer, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """alpha + (1 - alpha) times ReLU's slope: phi(t) = alpha t + (1 - alpha) max(t, 0)."""
    assert isinstance(layer, LeakyReLU)
    up = 1.0 + 16 * unit_roundoff(centre.dtype)
    slope = _rising(centre, upper).mul_(1.0 - layer.slope).add_(layer.slope).mul_(up)
    return slope.clamp_(LEAST, 1.0)


def _clamped(centre: Tensor, lower: Tensor, upper: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Slopes of min(max(t, low), high) for low <= high, rounded up; either may be infinite.

    a <= low: as for ReLU, with min(u, high) for u (beyond high only |t - a| grows).
    a >= high: with m = max(l, low), (high - t) / (a - t) falls on [m, high), so it is at most
    (high - m) / (a - m); below low only |t - a| grows. Elsewhere 1. Where box and centre lie on one
    flat side, both values are the same constant: 0.
    """
    up = 1.0 + 8 * unit_roundoff(centre.dtype)
    one = torch.ones_like(centre)
    top, bottom = torch.minimum(upper, high), torch.maximum(lower, low)
    rise, fall = top - centre, centre - bottom
    rising = ((top - low) / rise).mul_(up).clamp_(LEAST, 1.0)
    falling = ((high - bottom) / fall).mul_(up).clamp_(LEAST, 1.0)
    slope = torch.where((centre <= low) & torch.isfinite(rise) & (rise > 0), rising, one)
    slope = torch.where((centre >= high) & torch.isfinite(fall) & (fall > 0), falling, slope)
    slope = slope.masked_fill((upper <= low) & (centre <= low), 0.0)
    return slope.masked_fill_((lower >= high) & (centre >= high), 0.0)


def _limited(layer: Layer, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Clip, AtLeast, AtMost, ReLU-theta."""
    low, high = (limit.expand_as(centre) for limit in limits(layer, centre))
    return _clamped(centre, lower, upper, low, high)


def paired_slopes(
    centre: Tensor, lower: Tensor, upper: Tensor, ceiling: Tensor, floor: Tensor
) -> Tensor:
    """One slope for both of a pair (c, c + C/2), for A = min(max(a, b), M), B = max(min(a, b), N).

    Maximum and minimum together move a pair (a, b) by no more than it moves itself (GroupSort is
    1-Lipschitz), so in the norm of the pair |(A, B) - (A0, B0)| <= max(s_A, s_B) |(a, b) - (a0,
    b0)| with the clamps' own slopes over the boxes of maximum and minimum (methods-lipschitz 2.1).
    Where both are constant over the box, both rows vanish. ceiling M, floor N: broadcastable to
    half the channels, infinite for the plain MaxMin, whose slopes are 1: what cannot change there
    has a box without width, so that its columns in the next map are masked anyway.
    """
    centres, lowers, uppers = (x.chunk(2, dim=1) for x in (centre, lower, upper))
    top = torch.maximum(*centres)
    bottom = torch.minimum(*centres)
    infinite = torch.full_like(top, torch.inf)
    above = _clamped(
        top,
        torch.maximum(*lowers),
        torch.maximum(*uppers),
        -infinite,
        ceiling.to(top).expand_as(top),
    )
    below = _clamped(
        bottom,
        torch.minimum(*lowers),
        torch.minimum(*uppers),
        floor.to(bottom).expand_as(bottom),
        infinite,
    )
    slope = torch.maximum(above, below)
    return torch.cat([slope, slope], dim=1)


def _max_min(layer: Layer, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    infinite = centre.new_tensor(torch.inf)
    return paired_slopes(centre, lower, upper, infinite, -infinite)


SlopeRule = Callable[[Layer, Tensor, Tensor, Tensor], Tensor]

#: 1-Lipschitz activations, elementwise or on pairs. A new one is one row.
SLOPES: dict[type[Layer], SlopeRule] = {
    ReLU: _relu,
    LeakyReLU: _leaky_relu,
    **dict.fromkeys(LIMITS, _limited),
    MaxMin: _max_min,
}


def anchored_slopes(layer: Layer, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor | None:
    """Slopes [batch, *shape] in the centre's dtype, rounded up; None where no row covers it."""
    rule = SLOPES.get(type(layer))
    return None if rule is None else rule(layer, centre, lower, upper)
