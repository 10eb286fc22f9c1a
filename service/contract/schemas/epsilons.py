"""Epsilons as exact fractions: what a spec may say and how it is written down."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

__all__ = ["Epsilon", "epsilon_in_words", "epsilon_text", "parse_epsilon"]

#: Digits of a normal form that a person still reads.
READABLE = 16

#: ``36/255``, ``0.5``, ``1e-3``. Three digits of exponent: longer ones would only cost memory.
#: A fraction may be the normal form of any of them, and 5e-324 has 324 digits there.
_TEXT = re.compile(
    r"\d{1,400}(?:/\d{1,400})?|(?:\d{1,40}\.?\d{0,40}|\.\d{1,40})(?:[eE][+-]?\d{1,3})?"
)


def parse_epsilon(value: object) -> Fraction:
    """The exact fraction that ``value`` (a number, or text such as ``36/255``) stands for.

    A float is the decimal it is written as: 0.1 is 1/10, not the nearest binary fraction. Raises
    ValueError unless it is finite and > 0 (as a float too: 1e-400 is refused).
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str | Fraction):
        raise ValueError("an epsilon is a number or a text such as '36/255'")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("an epsilon must be finite")
    try:
        if isinstance(value, str):
            text = value.strip()
            if text.startswith("-"):
                raise ValueError("an epsilon must be > 0")
            if _TEXT.fullmatch(text) is None:
                raise ValueError("an epsilon is a number or a text such as '36/255'")
            fraction = Fraction(text)
        else:
            fraction = Fraction(repr(value)) if isinstance(value, float) else Fraction(value)
        as_float = float(fraction)
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError("an epsilon must be finite") from error
    if fraction <= 0 or as_float <= 0.0 or not math.isfinite(as_float):
        raise ValueError("an epsilon must be > 0 and finite")
    return fraction


def epsilon_text(epsilon: Fraction) -> str:
    """The normal form: ``12/85``, ``1/2``, ``3``."""
    return str(epsilon)


def epsilon_in_words(epsilon: Fraction) -> str:
    """For a sentence: the normal form, or, where that has hundreds of digits, about ``1e+300``."""
    text = epsilon_text(epsilon)
    return text if len(text) <= READABLE else f"{float(epsilon):g}"


def _validate(value: Any) -> Fraction:
    try:
        return parse_epsilon(value)
    except ValueError as error:
        raise PydanticCustomError("invalid_epsilon", "{reason}", {"reason": str(error)}) from error


#: An epsilon in a pydantic model: read from a number or a text, written as text.
Epsilon = Annotated[
    Fraction,
    PlainValidator(_validate),
    PlainSerializer(epsilon_text, return_type=str),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "examples": ["36/255", "0.5"]},
            ]
        }
    ),
]
