"""What follows from per-sample proofs because balls are nested, and the check of the bracket."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from workers.verification.results import SampleResults

__all__ = ["ContradictionError", "Verdicts", "verdicts"]


class ContradictionError(RuntimeError):
    """Certified and falsified at once, or certified though misclassified: a bound is wrong."""

    code = "internal_error"


@dataclass(frozen=True)
class Verdicts:
    """Per sample: correct [n]; certified and falsified [n, epsilons], closed under nesting;
    radius [n] >= every certified epsilon, 0 where nothing is proved, inf beyond every input.
    ``withdrawn`` counts the samples whose estimate an attack disproved (never in sound reports)."""

    correct: NDArray[np.bool_]
    certified: NDArray[np.bool_]
    falsified: NDArray[np.bool_]
    radius: NDArray[np.float64]
    withdrawn: int = 0


def verdicts(results: SampleResults, epsilons: Sequence[Fraction], *, sound: bool) -> Verdicts:
    """The samples' verdicts. Raises ContradictionError when they cannot all be true.

    What is certified at one epsilon is certified at every smaller one, and up to the proved radius;
    what is falsified at one epsilon is falsified at every larger one. An estimate that an attack
    disproves is no contradiction: it is withdrawn. Without labels, the label is the prediction.
    """
    correct = results.prediction == results.label
    radius = np.where(results.radius > 0, results.radius, 0.0)  # nan: not asked, nothing proved
    certified = results.certified.astype(bool).copy()
    falsified = results.falsified.astype(bool).copy()
    if bool((certified.any(axis=1) & ~correct).any()) or bool((radius[~correct] > 0).any()):
        raise ContradictionError("a misclassified sample is certified")
    order = sorted(range(len(epsilons)), key=lambda place: epsilons[place])
    for place in order:
        certified[:, place] |= radius >= round_up(epsilons[place])
        radius = np.maximum(radius, np.where(certified[:, place], round_down(epsilons[place]), 0.0))
    for smaller, larger in pairwise(order):
        falsified[:, larger] |= falsified[:, smaller]
        if epsilons[larger] == epsilons[smaller]:
            certified[:, larger] |= certified[:, smaller]
    for larger, smaller in pairwise(reversed(order)):
        certified[:, smaller] |= certified[:, larger]
        if epsilons[larger] == epsilons[smaller]:
            falsified[:, smaller] |= falsified[:, larger]
    both = (certified & falsified).any(axis=1)
    if bool(both.any()) and sound:
        rows = results.index[both].tolist()
        raise ContradictionError(f"samples {rows[:10]} are certified and falsified at once")
    certified &= ~falsified
    proved = np.where(certified, [round_down(epsilon) for epsilon in epsilons], 0.0).max(axis=1)
    radius = np.where(both, np.minimum(radius, proved), radius)
    return Verdicts(correct, certified, falsified & correct[:, None], radius, int(both.sum()))


def round_down(epsilon: Fraction) -> float:
    """The largest float that is not above epsilon."""
    value = float(epsilon)
    return math.nextafter(value, -math.inf) if Fraction(value) > epsilon else value


def round_up(epsilon: Fraction) -> float:
    """The smallest float that is not below epsilon."""
    value = float(epsilon)
    return math.nextafter(value, math.inf) if Fraction(value) < epsilon else value
