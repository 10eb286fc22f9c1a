"""A field of a form, as a row of a table."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NORMS", "Field"]

NORMS = (("l2", "l2: Euclidean distance"), ("linf", "linf: largest change of any one value"))


@dataclass(frozen=True)
class Field:
    """One field: ``name`` as in the API, with a point before a part's name.

    ``kind``: how the script reads it: text, number, number-or-text, numbers, list, flag, choice,
    json, switch (unchecked: null) or part (of a switch). ``more``: among the further settings.
    """

    name: str
    label: str
    help: str
    kind: str = "text"
    value: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    more: bool = False
    required: bool = False
    placeholder: str = ""
