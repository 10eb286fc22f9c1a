"""Linear expressions in inputs and outputs, and conditions on them as disjunctions of conjunctions.

Everything is exact. A condition is kept as a few atoms that hold in every case, beside the cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from workers.verification.properties.errors import PropertyError
from workers.verification.properties.text.numerals import bounded

__all__ = ["Atom", "Condition", "Linear", "Variable", "all_of", "any_of"]

#: Cases of one property, and atoms of all of them together, at most.
MAX_CASES, MAX_ATOMS = 10_000, 2_000_000

#: ("X" or "Y", its number).
Variable = tuple[str, int]


@dataclass(frozen=True)
class Linear:
    """Sum of factors times variables, plus a constant."""

    factors: Mapping[Variable, Fraction] = field(default_factory=dict)
    constant: Fraction = Fraction(0)

    def plus(self, other: Linear, sign: int = 1) -> Linear:
        """self + sign * other."""
        factors = dict(self.factors)
        for name, factor in other.factors.items():
            total = bounded(factors.pop(name, Fraction(0)) + sign * factor)
            if total:
                factors[name] = total
        return Linear(factors, bounded(self.constant + sign * other.constant))

    def times(self, number: Fraction) -> Linear:
        """number * self."""
        if not number:
            return Linear()
        factors = {name: bounded(number * factor) for name, factor in self.factors.items()}
        return Linear(factors, bounded(number * self.constant))


@dataclass(frozen=True)
class Atom:
    """sum of factors times variables <= limit; factors sorted by variable, none of them 0."""

    factors: tuple[tuple[Variable, Fraction], ...]
    limit: Fraction

    @classmethod
    def at_most(cls, less: Linear, more: Linear) -> Atom:
        """less <= more."""
        difference = less.plus(more, -1)
        return cls(tuple(sorted(difference.factors.items())), -difference.constant)


@dataclass(frozen=True)
class Condition:
    """All of ``always`` and one of ``cases``; no case left: it never holds."""

    always: tuple[Atom, ...] = ()
    cases: tuple[tuple[Atom, ...], ...] = ((),)

    @classmethod
    def of(cls, *atoms: Atom) -> Condition:
        """All of these. What holds for all numbers is left out, what holds for none ends it."""
        kept = tuple(atom for atom in atoms if atom.factors)
        if any(not atom.factors and atom.limit < 0 for atom in atoms):
            return cls((), ())
        return cls(kept)


def all_of(conditions: Iterable[Condition]) -> Condition:
    """Their conjunction. Raises PropertyError where it has too many cases."""
    always: list[Atom] = []
    branching: list[tuple[tuple[Atom, ...], ...]] = []
    for condition in conditions:
        always += condition.always
        if condition.cases != ((),):
            branching.append(condition.cases)
    cases: tuple[tuple[Atom, ...], ...] = ((),)
    for others in branching:
        _check(len(cases) * len(others), _size(cases) * len(others) + _size(others) * len(cases))
        cases = tuple(case + other for case in cases for other in others)
    return Condition(tuple(always), cases)


def any_of(conditions: Iterable[Condition]) -> Condition:
    """Their disjunction. Raises PropertyError where it has too many cases."""
    parts = [condition for condition in conditions if condition.cases]
    count = sum(len(condition.cases) for condition in parts)
    atoms = sum(
        _size(condition.cases) + len(condition.always) * len(condition.cases) for condition in parts
    )
    _check(count, atoms)
    return Condition(
        (), tuple(condition.always + case for condition in parts for case in condition.cases)
    )


def _size(cases: tuple[tuple[Atom, ...], ...]) -> int:
    return sum(map(len, cases))


def _check(cases: int, atoms: int) -> None:
    if cases > MAX_CASES or atoms > MAX_ATOMS:
        raise PropertyError(
            "property_too_large",
            f"the property comes to {cases} cases with {atoms} conditions; at most {MAX_CASES} "
            f"and {MAX_ATOMS} are taken",
            "split the property into several files",
        )
