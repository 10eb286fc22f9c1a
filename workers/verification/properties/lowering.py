"""A property as the verifier needs it: boxes of inputs, and for each the unsafe sets of outputs.

``lowered`` makes it of a condition; ``to_json`` and ``from_json`` keep it exactly; ``to_vnnlib``
writes it as VNN-LIB 1.0, which ``parse_vnnlib`` reads back as the same property.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from workers.verification.properties.errors import PropertyError
from workers.verification.properties.text.conditions import Atom, Condition
from workers.verification.properties.text.numerals import bounded, decimal_text

__all__ = ["Box", "LinearLimit", "Property", "lowered"]

#: Boxes of one property, and numbers in all of them together, at most.
MAX_BOXES, MAX_NUMBERS = 1_000, 20_000_000


@dataclass(frozen=True)
class LinearLimit:
    """sum of factors times outputs <= limit: factors (output, factor), sorted, none of them 0."""

    factors: tuple[tuple[int, Fraction], ...]
    limit: Fraction

    def holds(self, outputs: Sequence[Fraction]) -> bool:
        """Whether these outputs satisfy it, exactly; equality does."""
        return sum((f * outputs[i] for i, f in self.factors), Fraction(0)) <= self.limit


@dataclass(frozen=True)
class Box:
    """Inputs between ``lower`` and ``upper``, and the cases in which their outputs are unsafe.

    unsafe: outputs are unsafe where all limits of one of these cases hold; a case without limits is
    always unsafe.
    """

    lower: tuple[Fraction, ...]
    upper: tuple[Fraction, ...]
    unsafe: tuple[tuple[LinearLimit, ...], ...]

    def is_unsafe(self, outputs: Sequence[Fraction]) -> bool:
        """Whether these outputs are in the unsafe set, exactly."""
        return any(all(limit.holds(outputs) for limit in case) for case in self.unsafe)


@dataclass(frozen=True)
class Property:
    """No input of any box has unsafe outputs.

    input_shape: as the file declares it (2.0), batch included; it is checked once and not kept.
    """

    inputs: int
    outputs: int
    boxes: tuple[Box, ...]
    input_shape: tuple[int, ...] | None = field(default=None, compare=False)

    @property
    def cases(self) -> int:
        """How many pairs of a box and a conjunction of limits there are."""
        return sum(len(box.unsafe) for box in self.boxes)

    def to_json(self) -> dict[str, Any]:
        """JSON-able values, every number as exact text."""
        return {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "boxes": [
                {
                    "lower": [str(value) for value in box.lower],
                    "upper": [str(value) for value in box.upper],
                    "unsafe": [[_limit_json(limit) for limit in case] for case in box.unsafe],
                }
                for box in self.boxes
            ],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Property:
        """What ``to_json`` gave."""
        boxes = [
            Box(
                tuple(Fraction(text) for text in box["lower"]),
                tuple(Fraction(text) for text in box["upper"]),
                tuple(tuple(_limit_of(limit) for limit in case) for case in box["unsafe"]),
            )
            for box in value["boxes"]
        ]
        return cls(value["inputs"], value["outputs"], tuple(boxes))

    def to_vnnlib(self) -> str:
        """The property as VNN-LIB 1.0; numbers that are no decimals are written as quotients."""
        lines = [f"(declare-const X_{i} Real)" for i in range(self.inputs)]
        lines += [f"(declare-const Y_{i} Real)" for i in range(self.outputs)]
        cases = []
        for box in self.boxes:
            bounds = [f"(>= X_{i} {_number(v)})" for i, v in enumerate(box.lower)]
            bounds += [f"(<= X_{i} {_number(v)})" for i, v in enumerate(box.upper)]
            for case in box.unsafe:
                cases.append(f"(and {' '.join([*bounds, *map(_limit_text, case)])})")
        return "\n".join([*lines, f"(assert (or {' '.join(cases)}))"]) + "\n"


def lowered(condition: Condition, inputs: int, outputs: int) -> Property:
    """The unsafe set ``condition`` on so many inputs and outputs, by boxes in order of appearance.

    Raises PropertyError: ``unsupported_vnnlib`` for conditions that tie inputs to each other or to
    outputs, ``unbounded_input``, ``empty_box``, ``property_too_large``.
    """
    if not condition.cases:
        raise PropertyError(
            "empty_box",
            "the assertions contradict each other, whatever the inputs and outputs are",
            "a property of no input at all says nothing",
        )
    base, common = _parted(condition.always)
    found: dict[tuple[tuple[int, Fraction | None, Fraction | None], ...], list[Any]] = {}
    for case in condition.cases:
        bounds, limits = _parted(case)
        key = tuple((i, *ends) for i, ends in sorted(bounds.items()))
        found.setdefault(key, []).append(tuple(dict.fromkeys((*common, *limits))))
    if len(found) > MAX_BOXES or len(found) * inputs > MAX_NUMBERS:
        raise PropertyError(
            "property_too_large",
            f"the property has {len(found)} boxes of {inputs} inputs; at most {MAX_BOXES} boxes "
            f"and {MAX_NUMBERS} numbers are taken",
            "split the property into several files",
        )
    boxes: dict[tuple[tuple[Fraction, ...], tuple[Fraction, ...]], list[Any]] = {}
    for key, cases in found.items():
        box = _box(base, key, inputs)
        boxes.setdefault(box, []).extend(cases)
    return Property(
        inputs,
        outputs,
        tuple(
            Box(lower, upper, tuple(dict.fromkeys(cases)))
            for (lower, upper), cases in boxes.items()
        ),
    )


_Ends = tuple[Fraction | None, Fraction | None]


def _parted(atoms: Iterable[Atom]) -> tuple[dict[int, _Ends], list[LinearLimit]]:
    """Bounds on single inputs (number -> ends) and limits on outputs."""
    bounds: dict[int, _Ends] = {}
    limits: list[LinearLimit] = []
    for atom in atoms:
        kinds = {kind for (kind, _), _ in atom.factors}
        if kinds == {"Y"}:
            limits.append(LinearLimit(tuple((i, f) for (_, i), f in atom.factors), atom.limit))
        elif kinds == {"X"} and len(atom.factors) == 1:
            ((_, number), factor) = atom.factors[0]
            end = bounded(atom.limit / factor)
            bounds[number] = _cut(
                bounds.get(number, (None, None)), (None, end) if factor > 0 else (end, None)
            )
        else:
            names = ", ".join(f"{kind}_{i}" for (kind, i), _ in atom.factors[:4])
            raise PropertyError(
                "unsupported_vnnlib",
                f"a condition ties {names} together; inputs may have bounds of their own only",
                "state a box of inputs and linear limits on the outputs",
            )
    return bounds, limits


def _cut(one: _Ends, other: _Ends) -> _Ends:
    lower = [end for end in (one[0], other[0]) if end is not None]
    upper = [end for end in (one[1], other[1]) if end is not None]
    return max(lower, default=None), min(upper, default=None)


def _box(
    base: Mapping[int, _Ends],
    own: Sequence[tuple[int, Fraction | None, Fraction | None]],
    size: int,
) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...]]:
    ends = dict(base)
    for number, lower, upper in own:
        ends[number] = _cut(ends.get(number, (None, None)), (lower, upper))
    below, above = [], []
    for number in range(size):
        lower, upper = ends.get(number, (None, None))
        if lower is None or upper is None:
            missing = "lower" if lower is None else "upper"
            raise PropertyError(
                "unbounded_input",
                f"the input X_{number} has no {missing} bound",
                "every input needs a lower and an upper bound in every case",
            )
        if lower > upper:
            raise PropertyError(
                "empty_box",
                f"no number satisfies the bounds of X_{number}: it is to lie between "
                f"{float_text(lower)} and {float_text(upper)}",
                "a property of no input at all says nothing; correct the bounds",
            )
        below.append(lower)
        above.append(upper)
    return tuple(below), tuple(above)


def float_text(value: Fraction) -> str:
    """A number for people."""
    try:
        return f"{float(value):.6g}"
    except OverflowError:
        return f"about {'-' if value < 0 else ''}1e{len(str(abs(value.numerator))) - 1}"


def _limit_json(limit: LinearLimit) -> list[Any]:
    return [[[i, str(factor)] for i, factor in limit.factors], str(limit.limit)]


def _limit_of(value: Sequence[Any]) -> LinearLimit:
    factors, limit = value
    return LinearLimit(tuple((i, Fraction(text)) for i, text in factors), Fraction(limit))


def _number(value: Fraction) -> str:
    text = decimal_text(value)
    return f"(/ {value.numerator} {value.denominator})" if text is None else text


def _limit_text(limit: LinearLimit) -> str:
    terms = " ".join(f"(* {_number(factor)} Y_{i})" for i, factor in limit.factors)
    return f"(<= (+ {terms}) {_number(limit.limit)})"
