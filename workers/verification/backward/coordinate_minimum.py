"""The least value of one neuron's share of a quadratic backward bound, in closed form.

For an elementwise layer phi with a kink at 0, dz = z - zc and dr = phi(z) - phi(zc), a row of
``quadratic_pass`` needs, for every neuron, a lower bound on

    min over z in [l, u] of  c dr - g dz + (own + D) / 2 dz^2 - D / 2 dr^2,      own, D >= 0.

On either side of 0 the layer is a line, dr = s dz + k with |s| <= 1, so that what is minimised is
convex there: k (c - D k / 2) + t dz + q / 2 dz^2, with t = s (c - D k) - g and
q = own + (1 - s^2) D >= 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.verification.backward.linear_form import LinearForm
from workers.verification.layers.rules import Box, TwoLines
from workers.verification.numerics import (
    SUM_ROUNDINGS,
    lost_in_coefficients,
    lost_in_sums,
    min_normal,
    nonzero,
    quick_total,
    raised,
    rounding_error,
    slack,
    total,
)
from workers.verification.rounding import Rounding, unit_roundoff

__all__ = ["Cells", "Piece", "least_value", "reach_of"]

#: Roundings that one neuron's share takes, with what their magnitude exceeds ``Cells.size`` by.
SHARE_ROUNDINGS = 32

Slope = float | Tensor


def reach_of(box: Box, centre: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """lower - centre and upper - centre, rounded outward, [batch, *shape] each."""
    low, high = box[0] - centre, box[1] - centre
    if not rounding.is_sound:
        return low, high
    # One rounding of each difference, and one of this sum.
    return low - slack(low.abs(), 4 * rounding.own, rounding), high + slack(
        high.abs(), 4 * rounding.own, rounding
    )


@dataclass(frozen=True)
class Piece:
    """One side of 0: dr = slope dz + offset for low <= dz <= high; closed: inf where no z of the
    box lies on this side, else 0."""

    slope: Slope
    offset: Tensor
    low: Tensor
    high: Tensor
    closed: Tensor

    def picked(self, rows: LinearForm) -> Piece:
        """The same where the rows' coefficients are."""
        slope = rows.pick(self.slope) if isinstance(self.slope, Tensor) else self.slope
        return Piece(
            slope,
            rows.pick(self.offset),
            rows.pick(self.low),
            rows.pick(self.high),
            rows.pick(self.closed),
        )

    def line(
        self, c: Tensor, g: Tensor, own: Tensor, square: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(t, q, dz): slope at the centre, curvature, and about where the least value is."""
        slope = self.slope
        if isinstance(slope, float) and slope == 0.0:
            tilt, curvature = -g, own + square
        elif isinstance(slope, float) and slope == 1.0:
            tilt, curvature = c - square * self.offset - g, own
        else:
            tilt = slope * (c - square * self.offset) - g
            curvature = own + (1.0 - slope * slope) * square
        vertex = torch.clamp(-tilt / nonzero(curvature), self.low, self.high)
        return tilt, curvature, vertex

    def below(self, c: Tensor, g: Tensor, own: Tensor, square: Tensor) -> Tensor:
        """A lower bound on the least value on this side, inf where it is closed.

        The tangent at any p lies below a convex function: t dz + q / 2 dz^2 >= (t + q p) dz -
        q / 2 p^2, whose least value lies at an end. With p at the vertex nothing is lost, and no
        error of p matters.
        """
        tilt, curvature, p = self.line(c, g, own, square)
        moment = torch.addcmul(tilt, curvature.expand_as(p), p)
        least = torch.minimum(moment * self.low, moment * self.high)
        fixed = self.offset * (c - 0.5 * square * self.offset) + self.closed
        return fixed + (least - 0.5 * (curvature * p) * p)

    def least(
        self, c: Tensor, g: Tensor, own: Tensor, square: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(value, dz, dr) at the vertex itself: no proof, but with the gradient of the minimum."""
        tilt, curvature, p = self.line(c, g, own, square)
        value = self.offset * (c - 0.5 * square * self.offset) + self.closed
        value = value + (tilt + 0.5 * curvature * p) * p
        return value, p, self.slope * p + self.offset


@dataclass(frozen=True)
class Cells:
    """What the minima need of a layer over its input's box: both sides of 0, and
    reach >= |z - centre| for every z of the box."""

    below: Piece
    above: Piece
    reach: Tensor

    @classmethod
    def of(cls, lines: TwoLines, box: Box, centre: Tensor, rounding: Rounding) -> Cells:
        """Over the box of the layer's input, [batch, *shape], around its centre."""
        low, high = reach_of(box, centre, rounding)
        kink, zero = -centre, torch.zeros_like(centre)
        infinite = torch.full_like(centre, torch.inf)
        bend = lines.above - lines.below
        below = Piece(
            _whole(lines.below, centre),
            -bend * centre.clamp_min(0.0),
            torch.minimum(low, kink),
            torch.minimum(high, kink),
            torch.where(low > kink, infinite, zero),
        )
        above = Piece(
            _whole(lines.above, centre),
            bend * centre.clamp_max(0.0),
            torch.maximum(low, kink),
            torch.maximum(high, kink),
            torch.where(high < kink, infinite, zero),
        )
        return cls(below, above, torch.maximum(low.abs(), high.abs()))

    def picked(self, rows: LinearForm) -> Cells:
        """The same where the rows' coefficients are."""
        return Cells(self.below.picked(rows), self.above.picked(rows), rows.pick(self.reach))

    def size(self, c: Tensor, g: Tensor, own: Tensor, square: Tensor) -> Tensor:
        """[rows, columns] float64: (|c| + |g|) reach + (own + 2 D) reach^2, summed."""
        reach = self.reach.expand_as(c)
        linear = raised(total((c.abs() + g.abs()) * reach), 3, c.dtype)
        squares = raised(total(reach * reach), 3, c.dtype)
        return raised(linear[:, None] + (own.double() + 2.0 * square.double()) * squares[:, None])


def _whole(slope: Slope, like: Tensor) -> Slope:
    return slope.expand_as(like) if isinstance(slope, Tensor) else slope


def least_value(
    cells: Cells, c: Tensor, g: Tensor, own: Tensor, square: Tensor, rounding: Rounding
) -> tuple[Tensor, Tensor]:
    """(lower bounds on the sums of all neurons' least values, their magnitude), [rows, columns].

    cells: picked for the rows; c, g [rows, *form]; own, square [rows, columns] in c's dtype: each
    column is a choice of its own. One column with a gradient is no proof, but the plain minimum.

    Rounding. |k| <= reach, because 0 lies between the centre and a side that is not closed, and
    |p| <= reach. Every number that enters a neuron's share is at most twice (|c| + |g|) reach +
    (own + 2 D) reach^2 in magnitude and meets at most 12 roundings, so that ``SHARE_ROUNDINGS``
    roundings of that size cover them. What underflow takes from a coefficient or a curvature is
    multiplied by reach and reach^2.
    """
    if g.requires_grad or c.requires_grad or own.requires_grad:
        value = _Least.apply(c, g, own, square, cells)
        return value[:, None], value.detach().abs()[:, None]
    found = []
    for column in range(own.shape[1]):
        shape = (-1, *([1] * (c.dim() - 1)))
        one, two = own[:, column].reshape(shape), square[:, column].reshape(shape)
        below = cells.below.below(c, g, one, two)
        above = cells.above.below(c, g, one, two)
        found.append(quick_total(torch.minimum(below, above)))
    value = torch.stack(found, dim=1)
    size = cells.size(c, g, own, square)
    if rounding.is_sound:
        share = (SHARE_ROUNDINGS + SUM_ROUNDINGS) * unit_roundoff(c.dtype)
        value = value - rounding_error(size, share)
        reach = cells.reach.expand_as(c)
        tiny = total(reach) + total(reach * reach) + 2.0 * c[0].numel() * min_normal(c.dtype)
        lost = tiny * lost_in_coefficients(c.dtype) + c[0].numel() * lost_in_sums(c.dtype)
        value = value - raised(lost, 8, c.dtype)[:, None]
    return value, size


class _Least(torch.autograd.Function):
    """The sum of the minima with their derivatives by the envelope theorem: dr by c, -dz by g,
    dz^2 / 2 by own, (dz^2 - dr^2) / 2 by D, all at the point that attains the minimum."""

    @staticmethod
    def forward(
        ctx: Any, c: Tensor, g: Tensor, own: Tensor, square: Tensor, cells: Cells
    ) -> Tensor:
        shape = (-1, *([1] * (c.dim() - 1)))
        one, two = own.reshape(shape), square.reshape(shape)
        low, at_low, moved_low = cells.below.least(c, g, one, two)
        high, at_high, moved_high = cells.above.least(c, g, one, two)
        first = low < high
        at, moved = torch.where(first, at_low, at_high), torch.where(first, moved_low, moved_high)
        ctx.save_for_backward(at, moved)
        return quick_total(torch.minimum(low, high))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        at, moved = ctx.saved_tensors
        gradient = gradients[0].to(at.dtype)
        whole = gradient.reshape(-1, *([1] * (at.dim() - 1)))
        at_square = at.square().flatten(1).sum(1)
        moved_square = moved.square().flatten(1).sum(1)
        by_own = (0.5 * gradient * at_square)[:, None]
        by_square = (0.5 * gradient * (at_square - moved_square))[:, None]
        return whole * moved, -whole * at, by_own, by_square, None
