"""Sine and cosine: curves without end of pieces, of which the places are known by a formula.

Both are f(z) = sin(z + q pi/2), q = 0 and 1. f(z) - s z has its largest values where f' = s and
f >= 0, at acos(s) - q pi/2 + 2 pi k, and its least where f' = s and f <= 0, at -acos(s) - q pi/2 +
2 pi k. From one of these places to the next it changes by -2 pi s, so over a box it is extreme at
an end, at the first such place or at the last one, however many periods the box has.

Places are computed to within 2^-30 for numbers up to ``RANGE``: k is at most 2^18, 2 pi is off by
2^-51, each operation by a rounding of a number below 2^21. As |f''| <= 1, f(z) - s z is within
2^-61 of its extreme there; and where a place next to an end of the box is taken for one beyond it,
or the other way round, the end is as near to it. That is inside ``OWN_ERROR``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.base import Layer
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.rules import Box
from workers.verification.layers.smooth.curve import KERNEL_ERROR, OWN_ERROR, Curve, CurveRules
from workers.verification.numerics import MANY, raised
from workers.verification.rounding import Rounding

__all__ = ["COSINE", "RANGE", "SINE", "Wave", "WaveRules"]

#: Numbers up to which anything is concluded. The kernels are exact enough for all float32 numbers
#: (benchmarks/verification/kernels.py); a runtime that takes fewer digits of pi is so up to about
#: here, and the places above are.
RANGE = 2.0**20
#: The wave after q quarters of a turn.
_TURNED = (torch.sin, torch.cos, lambda z: -torch.sin(z), lambda z: -torch.cos(z))
_TURN = 2.0 * math.pi


def _extremes(quarter: int, slope: Tensor, low: Tensor, high: Tensor, side: int) -> Box:
    """The first and the last place in boxes where side (f(z) - slope z) is largest inside; an end
    of the box where there is none."""
    at = side * torch.acos(slope.clamp(-1.0, 1.0)) - quarter * (0.5 * math.pi)
    first = at + _TURN * torch.ceil((low - at) / _TURN)
    last = at + _TURN * torch.floor((high - at) / _TURN)
    return torch.clamp(first, low, high), torch.clamp(last, low, high)


@dataclass(frozen=True)
class Wave(Curve):
    """f(z) = sin(z + quarter pi/2); no ``pieces``."""

    quarter: int = 0

    def largest_less(self, slope: Tensor, low: Tensor, high: Tensor, side: int) -> Tensor:
        """An upper bound on side (f(z) - slope z) over boxes of float64 numbers."""
        places = (low, high, *_extremes(self.quarter, slope, low, high, side))
        return torch.stack([side * (self.value(z) - slope * z) for z in places]).amax(0)

    def image(self, low: Tensor, high: Tensor) -> Box:
        """The least and the largest value over boxes, float64; infinite out of the domain."""
        low, high, outside = self.inside(low, high)
        flat = torch.zeros_like(low)
        least = -self.largest_less(flat, low, high, -1)
        most = self.largest_less(flat, low, high, 1)
        return least.masked_fill(outside, -math.inf), most.masked_fill(outside, math.inf)

    def supporting(self, low: Tensor, high: Tensor, side: int) -> Tensor:
        """That slope of the chords and the tangent, or 0, whose line is nearer at the middle."""
        found, flat = super().supporting(low, high, side), torch.zeros_like(low)
        there = self.largest_less(found, low, high, side) + side * found * (0.5 * low + 0.5 * high)
        return torch.where(self.largest_less(flat, low, high, side) < there, flat, found)

    def slope_range(self, low: Tensor, high: Tensor) -> Box:
        """The least and the largest f' over boxes: f' is the wave a quarter further."""
        low, high, outside = self.inside(low, high)
        flat, rate = torch.zeros_like(low), (self.quarter + 1) % 4
        places = [low, high]
        for side in (-1, 1):
            places += _extremes(rate, flat, low, high, side)
        return self._around([self.slope(place) for place in places], outside)

    def steepness(self, low: Tensor, high: Tensor) -> Tensor:
        """The largest |f'| over boxes, float64."""
        return raised(torch.stack(self.slope_range(low, high)).abs().amax(0))


def _wave(quarter: int) -> Wave:
    return Wave(
        _TURNED[quarter],
        _TURNED[quarter + 1],
        (),
        steepest=1.0,
        absolute=KERNEL_ERROR,
        largest=RANGE,
        domain=(-RANGE, RANGE),
        quarter=quarter,
    )


SINE, COSINE = _wave(0), _wave(1)


@dataclass(frozen=True)
class WaveRules(CurveRules):
    """The rules of waves: what differs where f(0) is not 0, and where boxes hold several pieces."""

    curve: Callable[[Layer], Wave]

    def open(self, layer: Layer, boxes: list[Box]) -> Tensor:
        """Where the slope changes enough over the box for its bounds to matter."""
        ((lower, upper),) = boxes
        low, high = lower.to(torch.float64), upper.to(torch.float64)
        least, most = self.curve(layer).slope_range(low, high)
        return (most - least) * (high - low) > 1e-4

    def image(self, layer: Layer, boxes: list[Box]) -> Box:
        """The image of a box in real arithmetic, as the layer computes it."""
        ((lower, upper),) = boxes
        curve, flat = self.curve(layer), torch.zeros_like(lower)
        first, last = layer(lower), layer(upper)
        least = layer(_extremes(curve.quarter, flat, lower, upper, -1)[0])
        most = layer(_extremes(curve.quarter, flat, lower, upper, 1)[0])
        return (
            torch.minimum(torch.minimum(first, last), least),
            torch.maximum(torch.maximum(first, last), most),
        )

    def growth(
        self, step: GraphStep, centre_norm: Tensor, rounding: Rounding
    ) -> tuple[float, Tensor]:
        """No value is above 1 in size, and two differ by no more than their inputs do."""
        nothing = torch.zeros_like(centre_norm)
        if not rounding.is_sound:
            return 1.0, nothing
        curve, size = self.curve(step.layer(Layer)), torch.Size(step.shape).numel() ** 0.5
        off = curve.absolute + 2 * rounding.own + 2 * OWN_ERROR
        return 1.0, nothing + raised(off * size, MANY)
