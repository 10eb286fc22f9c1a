"""What a property says, for people: the intervals of its inputs and when its outputs are unsafe.

Long lists are shortened and counted, and numbers of more than 9 digits are rounded: the file is
what was verified, this is for reading it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from workers.verification.properties.lowering import Box, LinearLimit, Property, float_text

__all__ = ["stated_boxes"]

#: Boxes that are written out, beside the one of the counterexample.
BOXES = 5
#: Inputs of a box: the first ones, and as many of the widest of the others.
FIRST, WIDEST = 5, 5
#: Cases of a box, limits of a case, and outputs of a limit.
CASES, LIMITS, TERMS = 10, 10, 10


def stated_boxes(stated: Property, also: int | None = None) -> list[dict[str, Any]]:
    """The first boxes, and the box ``also``, as ``StatedBox`` of the report has them."""
    places = {*range(min(BOXES, len(stated.boxes)))} | ({also} if also is not None else set())
    return [_stated(stated.boxes[place], place) for place in sorted(places)]


def _stated(box: Box, place: int) -> dict[str, Any]:
    widths = [high - low for low, high in zip(box.lower, box.upper, strict=True)]
    lead = _most_common(box)
    return {
        "box": place,
        "inputs": len(widths),
        "fixed": sum(not width for width in widths),
        "intervals": [
            _interval(number, box.lower[number], box.upper[number]) for number in _chosen(widths)
        ],
        "cases": len(box.unsafe),
        "unsafe": [_case(case, lead) for case in box.unsafe[:CASES]],
    }


def _chosen(widths: Sequence[Fraction]) -> list[int]:
    """The first inputs and the widest of the others, in the order of their numbers."""
    others = range(FIRST, len(widths))
    widest = sorted(others, key=lambda number: (-widths[number], number))[:WIDEST]
    return [*range(min(FIRST, len(widths))), *sorted(widest)]


def _interval(number: int, low: Fraction, high: Fraction) -> str:
    if low == high:
        return f"X_{number} = {_digits(low)}"
    return f"{_digits(low)} <= X_{number} <= {_digits(high)}"


def _most_common(box: Box) -> int:
    """The output that most limits speak of: they are read best with it on the left."""
    counts = Counter(i for case in box.unsafe for limit in case for i, _ in limit.factors)
    return min(counts, key=lambda i: (-counts[i], i), default=0)


def _case(limits: Sequence[LinearLimit], lead: int) -> str:
    """The condition of a case: all its limits hold."""
    if not limits:
        return "always, whatever the outputs are"
    shown = [_limit(limit, lead) for limit in limits[:LIMITS]]
    left = len(limits) - len(shown)
    return " and ".join([*shown, *([f"{left} more"] if left else [])])


def _limit(limit: LinearLimit, lead: int) -> str:
    """The limit with the factor of ``lead``, or else of the first output, made 1."""
    factors = dict(limit.factors)
    first = lead if lead in factors else limit.factors[0][0]
    by = factors.pop(first)
    sign = ">=" if by < 0 else "<="
    bound = limit.limit / by
    others = [(output, -factor / by) for output, factor in sorted(factors.items())]
    terms = [_term(output, factor) for output, factor in others[:TERMS]]
    left = len(others) - len(terms)
    terms += [f"{left} more terms"] if left else []
    if bound or not terms:
        terms.append(_digits(bound))
    right = " + ".join(terms).replace("+ -", "- ")
    return f"Y_{first} {sign} {right}"


def _term(output: int, factor: Fraction) -> str:
    if abs(factor) == 1:
        return f"{'-' if factor < 0 else ''}Y_{output}"
    return f"{_digits(factor)} Y_{output}"


def _digits(value: Fraction) -> str:
    """The number with at most 9 digits."""
    try:
        return f"{float(value):.9g}"
    except OverflowError:
        return float_text(value)
