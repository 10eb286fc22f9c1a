"""Linear bounds of max(a, b) and min(a, b) for two values in boxes of their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.verification.numerics import slack
from workers.verification.rounding import Rounding

__all__ = ["Planes", "maximum_planes", "minimum_planes", "undecided"]


@dataclass
class Planes:
    """Elementwise planes over two boxes, [batch, *shape] each:

    lower_first a + lower_second b + lower_intercept <= f(a, b), and upper likewise.
    Intercepts are <= 0 below and >= 0 above.
    """

    lower_first: Tensor
    lower_second: Tensor
    lower_intercept: Tensor
    upper_first: Tensor
    upper_second: Tensor
    upper_intercept: Tensor


def undecided(low_a: Tensor, high_a: Tensor, low_b: Tensor, high_b: Tensor) -> Tensor:
    """Where neither value is the larger one throughout."""
    return (low_a < high_b) & (low_b < high_a)


def maximum_planes(
    low_a: Tensor, high_a: Tensor, low_b: Tensor, high_b: Tensor, rounding: Rounding
) -> Planes:
    """Planes of max(a, b), exact where one value is the larger one throughout.

    Below: the value whose box lies higher. Above: b + (chord of relu over a - b), with any two
    coefficients: max(a, b) - s a - t b is convex, so that its maximum over the boxes is at one of
    the four corners, where it is evaluated and rounded up.
    """
    first = low_a >= high_b
    second = (low_b >= high_a) & ~first
    one, zero = torch.ones_like(low_a), torch.zeros_like(low_a)
    higher = first | (~second & (low_a + high_a >= low_b + high_b))
    lower_first = torch.where(higher, one, zero)
    most, least = high_a - low_b, low_a - high_b
    open_ = ~first & ~second
    share = (most / torch.where(open_, most - least, one)).nan_to_num(0.5).clamp(0.0, 1.0)
    s = torch.where(open_, share, torch.where(first, one, zero))
    t = 1.0 - s
    corners = [
        torch.maximum(a, b) - s * a - t * b for a in (low_a, high_a) for b in (low_b, high_b)
    ]
    reach = torch.maximum(low_a.abs(), high_a.abs()) + torch.maximum(low_b.abs(), high_b.abs())
    above = (torch.stack(corners).amax(0) + slack(reach, 8 * rounding.own, rounding)).clamp_min(0.0)
    return Planes(lower_first, one - lower_first, zero, s, t, torch.where(open_, above, zero))


def minimum_planes(
    low_a: Tensor, high_a: Tensor, low_b: Tensor, high_b: Tensor, rounding: Rounding
) -> Planes:
    """Planes of min(a, b) = -max(-a, -b)."""
    twin = maximum_planes(-high_a, -low_a, -high_b, -low_b, rounding)
    return Planes(
        twin.upper_first,
        twin.upper_second,
        -twin.upper_intercept,
        twin.lower_first,
        twin.lower_second,
        -twin.lower_intercept,
    )
