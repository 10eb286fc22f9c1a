"""How long a training will take: from the steps of this process, the latest weighted most.

A run is done in many stretches, by workers of different speed, with idle hours between them. So the
clock starts with the first step that this process reports.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

__all__ = ["Pace"]

#: Seconds after which a step counts e times less. Long enough for epochs and their validation.
MEMORY_S = 120.0


class Pace:
    """The smoothed rate of a run's steps; ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: tuple[float, int] | None = None
        self._seconds = self._steps = 0.0

    def eta_s(self, done: int, total: int) -> float | None:
        """Seconds until ``total`` steps are done, of which ``done`` are; None before two reports
        with steps between them."""
        now = self._clock()
        if self._last is not None:
            passed, steps = now - self._last[0], done - self._last[1]
            kept = math.exp(-passed / MEMORY_S)
            self._seconds = self._seconds * kept + passed
            self._steps = self._steps * kept + steps
        self._last = (now, done)
        return (total - done) * self._seconds / self._steps if self._steps > 0 else None
