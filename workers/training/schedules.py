"""Values over a run, as data: points (share of the run, value), clamped at both ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Schedule"]


def _linear(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _log(low: float, high: float, share: float) -> float:
    return math.exp(_linear(math.log(low), math.log(high), share))


def _cosine(low: float, high: float, share: float) -> float:
    return _linear(low, high, 0.5 * (1.0 - math.cos(math.pi * share)))


def _steps(low: float, high: float, share: float) -> float:
    return low


#: How two neighbouring points are joined: a new shape is one row.
SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "linear": _linear,
    "log": _log,
    "cosine": _cosine,
    "steps": _steps,
}


@dataclass(frozen=True)
class Schedule:
    """``points`` in rising order of their share; ``shape`` is a key of SHAPES."""

    points: tuple[tuple[float, float], ...]
    shape: str = "linear"

    @classmethod
    def constant(cls, value: float) -> Schedule:
        """The same value all the time."""
        return cls(((0.0, value),))

    def at(self, share: float) -> float:
        """The value after ``share`` (0 to 1) of the run; before the first and after the last point
        theirs (the papers' code overshoots there)."""
        first, last = self.points[0], self.points[-1]
        if share <= first[0]:
            return first[1]
        if share >= last[0]:
            return last[1]
        for (begin, low), (end, high) in zip(self.points, self.points[1:], strict=False):
            if begin <= share < end:
                return SHAPES[self.shape](low, high, (share - begin) / (end - begin))
        return last[1]
