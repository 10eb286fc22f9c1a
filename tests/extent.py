"""How much a run tries: a slice in ``make test``, all of it in ``make nightly``.

CERTSERVE_TEST_ALL (set by ``make nightly``) asks for all. What differs is how many examples,
seeds and combinations are tried, never what is asserted of each.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["ALL", "examples", "part"]

ALL = "CERTSERVE_TEST_ALL" in os.environ
#: Examples of a property in a nightly run, for each one of ``make test``.
MORE = 10

T = TypeVar("T")


def examples(count: int, night: int | None = None) -> int:
    """So many examples of a property, or seeds of a loop.

    In a nightly run ``night`` of them, by default ten times as many.
    """
    if not ALL:
        return count
    return count * MORE if night is None else night


def part(whole: Sequence[T], *indices: int) -> list[T]:
    """The items at these indices; all of them in a nightly run."""
    return list(whole) if ALL else [whole[index] for index in indices]
