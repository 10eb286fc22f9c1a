"""Progress messages of a shard: which bound is at work, and how many samples are open."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Progress", "epsilon_text"]

#: Seconds after which the message is made anew; it is told at every look at the clock.
EVERY_S = 0.25
#: Fractions with a larger number above or below the line are written as decimals.
LARGEST_NUMBER = 10_000


@dataclass
class Progress:
    """Calls ``tell(done, message)`` at every call; ``tell`` may raise to abort the work.

    describe: gives both, and is called every ``EVERY_S`` seconds. done: samples on which the work
    is finished; it only grows, and is None before the first bound: operator norms are computed once
    for all samples, so that their time says nothing of that of a sample.
    """

    tell: Callable[[int | None, str], None]
    describe: Callable[[], tuple[int | None, str]] = lambda: (None, "operator norms")
    done: int | None = None
    message: str = "operator norms"
    _made_at: float = 0.0

    def __call__(self) -> None:
        if time.monotonic() - self._made_at >= EVERY_S:
            self._made_at = time.monotonic()
            done, self.message = self.describe()
            if done is not None:
                self.done = done if self.done is None else max(self.done, done)
        self.tell(self.done, self.message)


def epsilon_text(epsilon: Fraction) -> str:
    """An epsilon as people write it."""
    short = max(epsilon.numerator, epsilon.denominator) <= LARGEST_NUMBER
    return str(epsilon) if short else f"{float(epsilon):.4g}"
