"""Schedules as data: a value over the progress of a run, given by points (progress, value)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Schedule"]


def _linear(low: float, high: float, progress: float) -> float:
    return low + (high - low) * progress


def _log(low: float, high: float, progress: float) -> float:
    return math.exp(_linear(math.log(low), math.log(high), progress))


def _cosine(low: float, high: float, progress: float) -> float:
    return _linear(low, high, 0.5 * (1.0 - math.cos(math.pi * progress)))


def _steps(low: float, high: float, progress: float) -> float:
    return low


#: Part of a smooth rise that goes with t^4 (Shi et al. 2021, from Xu et al. 2020).
QUARTIC = 0.25


def _smooth(low: float, high: float, progress: float) -> float:
    """a t^4 up to QUARTIC, then its tangent, which ends at 1."""
    scale = 1.0 / (QUARTIC**3 * (4.0 - 3.0 * QUARTIC))
    if progress < QUARTIC:
        return _linear(low, high, scale * progress**4)
    return _linear(low, high, scale * QUARTIC**3 * (4.0 * progress - 3.0 * QUARTIC))


#: How two neighbouring points are joined: a new shape is one row.
SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "linear": _linear,
    "log": _log,
    "cosine": _cosine,
    "smooth": _smooth,
    "steps": _steps,
}


@dataclass(frozen=True)
class Schedule:
    """points: (progress from 0 to 1, value) in rising order; shape: how they are joined, a key of
    SHAPES."""

    points: tuple[tuple[float, float], ...]
    shape: str = "linear"

    @classmethod
    def constant(cls, value: float) -> Schedule:
        """The same value all the time."""
        return cls(((0.0, value),))

    def at(self, progress: float) -> float:
        """The value at ``progress`` (0 to 1) of the run; before the first and after the last point
        theirs (the papers' code overshoots there)."""
        first, last = self.points[0], self.points[-1]
        if progress <= first[0]:
            return first[1]
        if progress >= last[0]:
            return last[1]
        for (begin, low), (end, high) in zip(self.points, self.points[1:], strict=False):
            if begin <= progress < end:
                return SHAPES[self.shape](low, high, (progress - begin) / (end - begin))
        return last[1]
