"""The end of a backward pass: the least value of linear functions over the region itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.verification.backward.linear_form import LinearForm
from workers.verification.forward.box_ball import quick_maximum
from workers.verification.numerics import (
    ROOM,
    SUM_ROUNDINGS,
    euclidean_norm,
    lost_in_norm,
    lost_in_sums,
    quick_total,
    raised,
    rough_norm,
    rounded_down,
    rounded_up,
    rounding_error,
    sum_error,
)
from workers.verification.region import Region
from workers.verification.rounding import Rounding, unit_roundoff

__all__ = ["Concretization"]


@dataclass
class Concretization:
    """region, and its box [batch, *shape]; rounds: of the search over ball and box together.

    lost: what the last rows have lost by rounding here, about [rows] float64.
    """

    region: Region
    lower: Tensor
    upper: Tensor
    rounding: Rounding
    dtype: torch.dtype
    rounds: int
    lost: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    _centres: dict[torch.dtype, Tensor] = field(default_factory=dict)
    _box: tuple[Tensor, Tensor, Tensor] | None = None
    _offsets: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None = None

    def least(self, rows: LinearForm) -> Tensor:
        """Least value [rows] float64 of rows . x' over the region."""
        flat = rows.coefficients.flatten(1)
        unit = unit_roundoff(self.dtype) if self.rounding.is_sound else 0.0
        share = (SUM_ROUNDINGS + 4) * unit + sum_error(flat.shape[1]) * self.rounding.is_sound
        norm = rough_norm(flat.detach())
        if self.region.norm != "l2":
            return self._least_in_box(rows, norm, share)
        centre = self._centre(flat.dtype)
        at_centre = quick_total(flat * rows.pick(centre).flatten(1))
        lost = share * norm * rows.of_samples(rough_norm(self.region.x)) * ROOM
        lost = lost + lost_in_sums(self.dtype) * self.rounding.is_sound
        # Most of what ``fall`` loses, whatever the region.
        reach = rows.of_samples(self._reach()[4]) if self._boxed else 0.0
        self.lost = lost + (flat.shape[1] + SUM_ROUNDINGS) * unit * norm * reach
        return at_centre - self.fall(rows) - lost

    def _least_in_box(self, rows: LinearForm, norm: Tensor, share: float) -> Tensor:
        """rows . middle - |rows| . half, for the middle as it is rounded."""
        middle, half, size = self._halves()
        flat = rows.coefficients.flatten(1)
        parts = flat * rows.pick(middle).flatten(1)
        half = rows.pick(half).flatten(1)
        if parts.requires_grad:
            parts = parts - flat.abs() * half
        else:
            parts.addcmul_(flat.abs(), half, value=-1.0)
        # Both products and their difference are rounded, and the sum as ``quick_total`` says: by
        # Cauchy-Schwarz a share of |rows| (|middle| + |half|).
        lost = share * norm * rows.of_samples(size) * ROOM
        self.lost = lost + lost_in_sums(self.dtype) * self.rounding.is_sound
        return quick_total(parts) - self.lost

    @property
    def _boxed(self) -> bool:
        """Whether the box counts; else the region is a ball, and exact."""
        return self.region.norm != "l2" or bool(self.region.clip)

    def fall(self, rows: LinearForm) -> Tensor:
        """Upper bound [rows] float64 on how far rows . x' may lie below rows . x in the region."""
        flat = rows.coefficients.flatten(1)
        if not self._boxed:
            return raised(rows.of_samples(self.region.epsilon) * euclidean_norm(flat), 3)
        below, above, middle, reach, reach_norm = self._reach()
        if self.region.norm == "l2":
            drop, point = quick_maximum(
                -flat.detach(),
                rows.pick(below).flatten(1),
                rows.pick(above).flatten(1),
                rows.of_samples(self.region.epsilon).expand(len(flat)),
                rows.of_samples(reach_norm),
                self.rounds,
            )
            if flat.requires_grad:
                # Envelope theorem: the derivative of the maximum is the point that attains it.
                along = (-flat * point).sum(1, dtype=torch.float64)
                drop = drop + (along - along.detach())
        else:
            # Off centre where the pixel box cuts the ball: below and above are not symmetric.
            unit = unit_roundoff(self.dtype) if self.rounding.is_sound else 0.0
            norm = torch.linalg.vector_norm(flat.detach(), dim=1).to(torch.float64)
            norm = norm + lost_in_norm(flat.shape[1], self.dtype)
            drop = quick_total(flat.abs() * rows.pick(reach).flatten(1))
            drop = drop - quick_total(flat * rows.pick(middle).flatten(1))
            share = (flat.shape[1] + 8 + SUM_ROUNDINGS) * unit
            drop = drop + share * norm * rows.of_samples(reach_norm) * 2
        return drop + lost_in_sums(self.dtype) * self.rounding.is_sound

    def _centre(self, dtype: torch.dtype = torch.float64) -> Tensor:
        if dtype not in self._centres:
            self._centres[dtype] = self.region.x.to(dtype)
        return self._centres[dtype]

    def _halves(self) -> tuple[Tensor, Tensor, Tensor]:
        """Middle of the box, rounded to ``dtype``; half its width from there, rounded up; and the
        sum of their norms, [batch] float64."""
        if self._box is None:
            low, high = self.lower.to(torch.float64), self.upper.to(torch.float64)
            middle = ((low + high) * 0.5).to(self.dtype)
            exact = middle.to(torch.float64)
            half = rounded_up(raised(torch.maximum(high - exact, exact - low), 1), self.dtype)
            self._box = middle, half, rough_norm(middle) + rough_norm(half)
        return self._box

    def _reach(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """lower - x <= 0, upper - x >= 0, their middle and half width, outward; corner's norm."""
        if self._offsets is None:
            below = (self.lower.to(torch.float64) - self._centre()).clamp_max(0.0)
            above = (self.upper.to(torch.float64) - self._centre()).clamp_min(0.0)
            # In float64 until the end: differences of denormal numbers have no half in float32.
            low, high = -raised(-below, 1), raised(above, 1)
            below, above = rounded_down(low, self.dtype), rounded_up(high, self.dtype)
            norm = rounding_error(euclidean_norm(torch.maximum(-low, high)))
            middle = ((low + high) * 0.5).to(self.dtype)
            exact = middle.to(torch.float64)
            half = rounded_up(raised(torch.maximum(high - exact, exact - low), 1), self.dtype)
            self._offsets = (below, above, middle, half, norm)
        return self._offsets
