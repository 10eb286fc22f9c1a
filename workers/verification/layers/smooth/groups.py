"""Groups of n numbers in boxes, each over the root of the group's mean square: extremes and lines.

Of one number t of a group, with the sum S of the others' squares, y = t / sqrt((t^2 + S) / n +
eps) never falls in t and falls in S for t > 0: its least and largest values over a box are at the
box's nearest or farthest others. For a fixed S it is convex in t < 0 and concave in t > 0, so its
extremes less a line are at an end, at 0, or where its slope is the line's. These planes move with t
alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.normalization import Standardize
from workers.verification.layers.rules import Box
from workers.verification.numerics import lowered, raised
from workers.verification.rounding import unit_roundoff

__all__ = ["OWN", "Group", "line_above"]

#: Roundings of one number that the own float64 arithmetic makes of a few others.
OWN = 64 * unit_roundoff(torch.float64)
#: Places at which the slope of a line through an end of the box is looked for.
PLACES = 8


@dataclass(frozen=True)
class Group:
    """Groups of n numbers in boxes: everything float64, sums rounded outward.

    low, high: [batch, *shape]; near, far: least and largest squares; least, most: Q over the box,
    with 1 in the place of the axes.
    """

    layer: Standardize
    low: Tensor
    high: Tensor

    @property
    def axes(self) -> list[int]:
        """Of the batched tensor."""
        return self.layer.batched_axes()

    @property
    def count(self) -> int:
        """n."""
        return math.prod(self.low.shape[axis] for axis in self.axes)

    @property
    def near(self) -> Tensor:
        """Least squares."""
        return torch.maximum(self.low, -self.high).clamp_min(0.0).square()

    @property
    def far(self) -> Tensor:
        """Largest squares."""
        return torch.maximum(self.low.abs(), self.high.abs()).square()

    def mean(self, x: Tensor) -> Tensor:
        """Over the group."""
        return x.sum(self.axes, keepdim=True) / self.count

    @property
    def least(self) -> Tensor:
        """Least mean square."""
        return lowered(self.mean(self.near), self.count + 4)

    @property
    def most(self) -> Tensor:
        """Largest mean square."""
        return raised(self.mean(self.far), self.count + 4)

    def others(self) -> tuple[Tensor, Tensor]:
        """Least and largest sums of the others' squares, [batch, *shape]."""
        near, far, count = self.near, self.far, self.count
        least = lowered(near.sum(self.axes, keepdim=True), count + 4) - raised(near, 4)
        most = raised(far.sum(self.axes, keepdim=True), count + 4) - lowered(far, 4)
        return lowered(least, 4).clamp_min(0.0), raised(most, 4)

    def value(self, t: Tensor, others: Tensor) -> Tensor:
        """y for a number and the sum of the others' squares."""
        return t / torch.sqrt((t.square() + others) / self.count + self.layer.eps)

    def image(self) -> Box:
        """The least and the largest values over the box, rounded outward."""
        least, most = self.others()
        low = self.value(self.low, torch.where(self.low < 0, least, most))
        high = self.value(self.high, torch.where(self.high > 0, least, most))
        return low - OWN * low.abs(), high + OWN * high.abs()


def line_above(group: Group, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of a line above every y over [low, high], [batch, *shape] each.

    The slope is that of the line from the lower end to the curve for t > 0 which is steepest, or of
    the curve in the middle of a box that is there entirely; any would do.
    """
    least, most = group.others()
    count, eps = group.count, group.layer.eps

    def curve(t: Tensor) -> Tensor:
        return group.value(t, torch.where(t > 0, least, most))

    def slope_at(t: Tensor) -> Tensor:
        """Of the concave part, t >= 0."""
        rest = least / count + eps
        return rest / (t.square() / count + rest) ** 1.5

    at_low = curve(low)
    width = torch.where(high > low, high - low, 1.0)
    slope = torch.where(high > low, (curve(high) - at_low) / width, slope_at(high.abs()))
    for place in range(1, PLACES):
        t = high * (place / PLACES)
        rise = (curve(t) - at_low) / torch.where(t > low, t - low, 1.0)
        slope = torch.where((low < 0) & (t > 0), torch.maximum(slope, rise), slope)
    middle = 0.5 * low + 0.5 * high
    slope = torch.where(low >= 0, slope_at(middle), slope).clamp_min(0.0)
    best = torch.maximum(at_low - slope * low, curve(high) - slope * high)
    best = torch.where((low < 0) & (high > 0), best.clamp_min(0.0), best)
    # On t > 0: where the curve's slope is the line's, or as near to there as the box goes. Rounding
    # may move that place: a concave function is below its tangent anywhere.
    rest = least / count + eps
    square = count * ((rest / slope.clamp_min(1e-200)) ** (2.0 / 3.0) - rest)
    start = low.clamp_min(0.0)
    nearest = torch.minimum(torch.maximum(square.clamp_min(0.0).sqrt(), start), high)
    rest_slope = slope_at(nearest) - slope
    more = torch.maximum(rest_slope * (high - nearest), -rest_slope * (nearest - start))
    inner = group.value(nearest, least) - slope * nearest + more.clamp_min(0.0)
    best = torch.where(high > 0, torch.maximum(best, inner), best)
    reach = torch.maximum(low.abs(), high.abs())
    size = torch.maximum(curve(low).abs(), curve(high).abs()) + slope * reach
    return slope, best + OWN * size
