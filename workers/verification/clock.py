"""The clock of a bound: its deadline, and a callback that reports progress or aborts the work.

A bound on a large network takes minutes, so time budget, cancellation and progress must reach
inside it. Whatever works for long calls ``check`` between its pieces (row blocks and layers of a
backward pass, iterations, starts, layers of a forward pass, parts of a norm). ``check`` calls
``report``, which may raise to abort the work, and raises ``OutOfTime`` once the deadline is over.
Without a deadline the time is never read, so no result can depend on it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["UNLIMITED", "Clock", "OutOfTime", "rows_per_piece"]

#: Multiplications of one piece of work, about: some tenths of a second of a CPU core, or of a GPU.
PIECE = {"cpu": 2.0**32, "cuda": 2.0**42}


class OutOfTime(Exception):
    """The deadline is over: what has been proved so far stands, the rest stays undecided."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Clock:
    """deadline: ``now()`` after which the time is over (None: never); report: called by every
    ``check``."""

    deadline: float | None = None
    report: Callable[[], None] = _nothing
    now: Callable[[], float] = time.monotonic

    def over(self) -> bool:
        """Whether the time is over. Calls ``report``."""
        self.report()
        return self.deadline is not None and self.now() > self.deadline

    def check(self) -> None:
        """Raises OutOfTime where the time is over, and whatever ``report`` raises."""
        if self.over():
            raise OutOfTime


#: No deadline, no report.
UNLIMITED = Clock()


def rows_per_piece(multiplications: float, device: torch.device) -> int:
    """How many rows of so many multiplications each make one piece of work; at least one."""
    return max(1, math.floor(PIECE[device.type] / max(1.0, multiplications)))
