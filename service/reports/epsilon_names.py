"""Epsilons as people write them: 8/255 stays 8/255, 1.58 stays 1.58.

A spec keeps an epsilon as a fraction in lowest terms, in which 36/255 is 12/85.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from service.reports.axes import number

__all__ = ["epsilon_name", "epsilon_names"]

#: Longest fraction that is written in full.
_LONGEST = 12


def epsilon_names(report: Mapping[str, Any]) -> list[str]:
    """A name for each epsilon of the report, in its order."""
    rows = report["results"]
    return [epsilon_name(row.get("epsilon_exact") or repr(row["epsilon"])) for row in rows]


def epsilon_name(exact: str) -> str:
    """The name of an epsilon given as exact text: a short decimal where it is one, else n/255."""
    value = Fraction(exact)
    decimal = f"{float(value):g}"
    if Fraction(decimal) == value:
        return decimal
    if 255 % value.denominator == 0:
        return f"{value.numerator * (255 // value.denominator)}/255"
    return str(value) if len(str(value)) <= _LONGEST else number(float(value))
