"""Which known name a mistyped one probably means: for messages alone, never to guess a value."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["did_you_mean"]

#: Longer names are no slips of the keyboard, and comparing them costs their square.
_LONGEST = 80


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """`` (did you mean 'crown'?)`` where a known name is close to ``given``, else an empty text.

    Case, and which of ``-``, ``_`` and a space joins words, do not count as differences.
    """
    if not isinstance(given, str) or not 0 < len(given) <= _LONGEST:
        return ""
    plain = {_plain(name): name for name in known}
    near = get_close_matches(_plain(given), plain, n=1, cutoff=0.65)
    return f" (did you mean {plain[near[0]]!r}?)" if near else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(" ", "-")
