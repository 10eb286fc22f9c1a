"""The set of allowed inputs: an lp ball in input space, cut with the range of valid inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from workers.verification.input_range import Clip, InputRange, range_of
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
    """Inputs x' with |x' - x| <= epsilon in ``norm`` (``l2`` | ``linf``), in the range ``clip``.

    x [batch, *shape]; epsilon [batch] float64 in units of the input, already rounded up.
    sides: lowest and highest inputs [batch, *shape] float64 with x between them, where the region
    is no more than that part of its ball; a bound that does not look at them proves more.
    """

    x: Tensor
    epsilon: Tensor
    norm: str
    clip: Clip
    sides: tuple[Tensor, Tensor] | None = None

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor) -> Region:
        """The inputs between ``lower`` and ``upper`` [batch, *shape], finite float64, and, where no
        float32 number is between them, the nearest one to their middle."""
        x = (lower + (upper - lower) / 2).to(torch.float32)
        exact = x.to(torch.float64)
        lower, upper = torch.minimum(lower, exact), torch.maximum(upper, exact)
        reach = torch.maximum(upper - exact, exact - lower).flatten(1).amax(1)
        return cls(x, raised(reach, 1), "linf", False, (lower, upper))

    def box(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Elementwise bounds of the region, rounded outward: lower, upper [batch, *shape]."""
        x = self.x.to(dtype)
        # Rounded up; 2 u (|x| + e) covers the rounding of the sums below.
        reach = raised(raised(self.epsilon, 1, dtype).to(dtype), 1, dtype)
        slack = 4 * unit_roundoff(dtype) * x.abs()
        slack += reach.reshape(-1, *([1] * (x.dim() - 1)))
        lower, upper = x - slack, x + slack
        limits = range_of(self.clip)
        if limits is not None:
            # Points of the data set outside the range stay allowed themselves.
            low, high = limits.ends(x)
            lower = torch.maximum(lower, torch.minimum(x, low))
            upper = torch.minimum(upper, torch.maximum(x, high))
        if self.sides is not None:
            lower = torch.maximum(lower, _at_most(self.sides[0], dtype))
            upper = torch.minimum(upper, -_at_most(-self.sides[1], dtype))
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
        sides = self.sides
        if sides is not None:
            sides = (sides[0][rows].to(device), sides[1][rows].to(device))
        x, epsilon = self.x[rows].to(device), self.epsilon[rows].to(device)
        return Region(x, epsilon, self.norm, self.clip, sides)

    @property
    def cap(self) -> float:
        """An epsilon beyond which the region does not grow."""
        return largest_distance(tuple(self.x.shape[1:]), self.norm, self.clip)


def _at_most(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest numbers of ``dtype`` that are not above x (float64)."""
    near = x.to(dtype)
    below = torch.nextafter(near, near.new_tensor(-torch.inf))
    return torch.where(near.to(torch.float64) > x, below, near)


def largest_distance(shape: tuple[int, ...], norm: str, clip: Clip) -> float:
    """A distance that no two inputs in the range exceed; without one, no two finite float32."""
    if isinstance(clip, InputRange):
        widths = clip.widths(shape).flatten()
        return float(widths.amax() if norm == "linf" else raised(widths.norm(), MANY))
    side = 1.0 if clip else 7e38
    return side * (math.sqrt(math.prod(shape)) if norm == "l2" else 1.0)
