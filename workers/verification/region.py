"""The set of allowed inputs: an lp ball in pixel space, cut with the pixel box [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from workers.verification.numerics import MANY, raised
from workers.verification.rounding import unit_roundoff

__all__ = ["Region", "float_above"]

#: Added to every radius, in pixel units: far more than underflow takes from it.
RADIUS_FLOOR = 1e-18


def float_above(value: Fraction) -> float:
    """The least float64 that is not below ``value``."""
    nearest = float(value)
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


@dataclass(frozen=True)
class Region:
    """Inputs x' with |x' - x| <= epsilon in ``norm`` (``l2`` | ``linf``), in [0, 1] if ``clip``.

    x [batch, *shape]; epsilon [batch] float64 in pixel units, already rounded up.
    """

    x: Tensor
    epsilon: Tensor
    norm: str
    clip: bool

    def box(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Elementwise bounds of the region, rounded outward: lower, upper [batch, *shape]."""
        x = self.x.to(dtype)
        # Rounded up; 2 u (|x| + e) covers the rounding of the sums below.
        reach = raised(raised(self.epsilon, 1, dtype).to(dtype), 1, dtype)
        slack = 4 * unit_roundoff(dtype) * x.abs()
        slack += reach.reshape(-1, *([1] * (x.dim() - 1)))
        lower, upper = x - slack, x + slack
        if self.clip:
            # Points of the data set outside [0, 1] stay allowed themselves.
            lower = torch.maximum(lower, x.clamp_max(0.0))
            upper = torch.minimum(upper, x.clamp_min(1.0))
        return lower, upper

    def radius(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Euclidean radius around x that holds the region, [batch] float64, rounded up."""
        x = self.x.to(lower.dtype)
        reach = torch.maximum(upper - x, x - lower).flatten(1)
        corner = torch.linalg.vector_norm(reach, dim=1, dtype=torch.float64)
        corner = raised(raised(corner, MANY), 1, lower.dtype) + RADIUS_FLOOR
        return torch.minimum(corner, self.epsilon) if self.norm == "l2" else corner

    def part(self, rows: Tensor | slice, device: torch.device) -> Region:
        """The region of these samples alone, on ``device``."""
        return Region(self.x[rows].to(device), self.epsilon[rows].to(device), self.norm, self.clip)

    @property
    def cap(self) -> float:
        """An epsilon beyond which the region does not grow."""
        return largest_distance(tuple(self.x.shape[1:]), self.norm, self.clip)


def largest_distance(shape: tuple[int, ...], norm: str, clip: bool) -> float:
    """A distance that no two inputs exceed: [0, 1]^d with ``clip``, else all finite float32."""
    side = 1.0 if clip else 7e38
    return side * (math.sqrt(math.prod(shape)) if norm == "l2" else 1.0)
