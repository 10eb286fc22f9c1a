"""What a property says, as pages and terminals show it: intervals and the unsafe condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.reports.words.counted import counted

__all__ = ["StatedBoxWords", "stated_property"]


@dataclass(frozen=True)
class StatedBoxWords:
    """title: which box, where there are several; intervals: of some inputs; more: of the others, or
    empty; unsafe: the condition after "unsafe if"."""

    title: str
    intervals: Sequence[str]
    more: str
    unsafe: str


def stated_property(report: Mapping[str, Any]) -> tuple[Sequence[StatedBoxWords], str]:
    """The boxes that the report writes out, and a sentence on those that it does not, or ""; none
    of a report of an earlier release."""
    found = report["property"]
    stated = found.get("stated")
    if not stated:
        return [], ""
    left = found["boxes"] - len(stated)
    more = f"{counted(left, 'further box', 'further boxes')} in the property file" if left else ""
    return [_words(box, found["boxes"]) for box in stated], more


def _words(box: Mapping[str, Any], boxes: int) -> StatedBoxWords:
    left = box["inputs"] - len(box["intervals"])
    more = ""
    if left:
        more = f"and {counted(left, 'further input')}, none wider than the widest of these"
        if box["fixed"]:
            more += f"; {box['fixed']} of all {box['inputs']} have one value"
    return StatedBoxWords(
        title=f"box {box['box'] + 1} of {boxes}" if boxes > 1 else "",
        intervals=box["intervals"],
        more=more,
        unsafe=_unsafe(box["unsafe"], box["cases"]),
    )


def _unsafe(cases: Sequence[str], count: int) -> str:
    """The cases, any of which is unsafe; those of several limits in parentheses."""
    shown = [f"({case})" if count > 1 and " and " in case else case for case in cases]
    left = count - len(cases)
    return " or ".join([*shown, *([counted(left, "further case")] if left else [])])
