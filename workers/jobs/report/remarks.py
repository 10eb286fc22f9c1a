"""Sentences of a certification's report: what to know beside its figures, and what to try."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from service.contract.schemas.epsilons import epsilon_in_words, epsilon_text
from service.contract.schemas.submissions import Spec
from workers.jobs.inspection.valid_inputs import ValidInputs
from workers.jobs.report.verdicts import Verdicts
from workers.verification.answers import NO_ANSWER
from workers.verification.input_range import InputRange
from workers.verification.results import SampleResults
from workers.verification.rounding import answer_gap

__all__ = ["MUCH", "in_words", "lost_to_float32", "remarks"]

#: Of a radius, what float32 takes at least where the report says what to do about it.
MUCH = 0.05


def remarks(
    spec: Spec,
    found: Verdicts,
    results: SampleResults,
    facts: Mapping[str, Any],
    cap: float,
    inputs: ValidInputs,
    *,
    image: bool,
) -> list[str]:
    """All of them, in an order that is the same in every run.

    facts: what ``prepare`` found; cap: the largest distance of two inputs; image: whether inputs
    are pictures.
    """
    return [
        *_answers(found, results, facts),
        *_whole_range(spec, cap, inputs, image=image),
        *_part_of_a_level(spec),
        *_work(spec, results),
        *lost_to_float32(spec, results.notes),
    ]


def _answers(found: Verdicts, results: SampleResults, facts: Mapping[str, Any]) -> list[str]:
    """Those of model and data, then of predictions."""
    said = sorted(set(facts.get("warnings", [])))
    dropped = facts.get("dropped_output")
    unanswered = int((results.prediction == NO_ANSWER).sum())
    if unanswered:
        said.append(
            f"{unanswered} of {len(results.index)} samples have no prediction (-1): no logit is "
            "strictly the largest, or one is not finite. They count as wrong."
        )
    if found.withdrawn:
        said.append(
            f"The attack disproved the estimate for {found.withdrawn} samples; it was withdrawn."
        )
    gap = answer_gap(dropped)
    if dropped is not None and gap:
        said.append(
            f"Margins are of the logits before the final {dropped}. A logit that leads by "
            f"2^{round(math.log2(gap))} or less counts as no answer: the {dropped} may round it to "
            "a tie."
        )
    return said


def _work(spec: Spec, results: SampleResults) -> list[str]:
    """What ``auto`` left undone for want of work."""
    if not results.notes.get("work_spent"):
        return []
    more = {"quick": '"standard"', "standard": '"exhaustive"'}.get(spec.effort)
    return [
        f'The work of the effort "{spec.effort}" was spent before every bound had its turn: what '
        "is undecided may be decided by "
        + (f"the effort {more}, " if more else "")
        + "fewer samples in a job, or a method named alone."
    ]


def lost_to_float32(spec: Spec, notes: Mapping[str, Any]) -> list[str]:
    """A sentence where float32 takes much of the radii in closed form, and what keeps them.

    notes: of the samples' results.
    """
    told = [note for note in notes.get("lost_to_float32", []) if note["by"] == "lipschitz"]
    share = statistics.median(note["share"] for note in told) if told else 0.0
    if spec.summation != "as-uploaded" or share < MUCH:
        return []
    return [
        f"What float32 may round, added up in any order, takes {share:.0%} of the radius that the "
        'norms of the layers give (median of some samples): "summation": "partial-sums" certifies, '
        "and hands out, another file of the same network that keeps more of it where sums are wide."
    ]


def _whole_range(spec: Spec, cap: float, inputs: ValidInputs, *, image: bool) -> list[str]:
    """A sentence where an epsilon reaches every input that there is."""
    if not spec.clip:
        return []
    pixels = image and not isinstance(inputs.clip, InputRange)
    units = (
        "epsilons are in pixel units"
        if pixels
        else 'epsilons are in the inputs\' own units; say which are valid: "input_range": [low, '
        "high], or null for any number"
    )
    return [
        f"Epsilon {text} reaches every input in {in_words(inputs)}: {units}"
        + (
            f", was {text}/255 meant?"
            if pixels and float(epsilon) <= 255 and "/" not in text
            else "."
        )
        for epsilon, text in ((e, epsilon_in_words(e)) for e in spec.epsilons)
        if float(epsilon) >= cap
    ]


def _part_of_a_level(spec: Spec) -> list[str]:
    """A sentence where inputs are grey levels from 0 to 255, and an epsilon is a part of one."""
    if spec.input_range != [0.0, 255.0]:
        return []
    return [
        f"Epsilon {epsilon_text(epsilon)} is less than one grey level: epsilons are in the units "
        f"of input_range, [0, 255], was {epsilon_text(epsilon * 255)} meant?"
        for epsilon in spec.epsilons
        if epsilon < 1
    ]


def in_words(inputs: ValidInputs) -> str | None:
    """The range of valid inputs, as sentences name it; None without one."""
    clip = inputs.clip
    if not isinstance(clip, InputRange):
        return "[0, 1]" if clip else None
    if clip.whole:
        return "the bytes from 0 to 255 (epsilons are shares of 255)"
    if len(clip.low) == len(clip.high) == 1:
        return f"[{clip.low[0]:g}, {clip.high[0]:g}]"
    return "the range that the spec gives for each of them (input_range)"
