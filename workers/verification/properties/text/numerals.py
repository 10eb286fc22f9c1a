"""Exact rational numbers of bounded size: VNN-LIB's decimals, and what is computed with them."""

from __future__ import annotations

import re
from fractions import Fraction

from workers.verification.properties.errors import PropertyError

__all__ = ["bounded", "decimal_text", "numeral"]

#: Digits of one numeral, and the size of its exponent, at most: beyond every float64.
MAX_DIGITS, MAX_EXPONENT = 400, 400
#: Bits of numerator and of denominator of whatever is computed from numerals.
MAX_BITS = 8192

_NUMERAL = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]+))?")


def numeral(text: str) -> Fraction | None:
    """The exact value of a decimal such as -0.1, .5 or 1e-3; None where the text is no decimal.

    Raises PropertyError where it has more digits or a larger exponent than any use.
    """
    found = _NUMERAL.fullmatch(text)
    if found is None or not (found[2] or found[3]):
        return None
    digits = (found[2] or "") + (found[3] or "")
    exponent = (found[4] or "0").lstrip("+-").lstrip("0")
    if len(digits) > MAX_DIGITS or len(exponent) > 3 or int(exponent or "0") > MAX_EXPONENT:
        raise PropertyError(
            "property_too_large",
            f"the number {text[:40]!r} has more than {MAX_DIGITS} digits or an exponent beyond "
            f"{MAX_EXPONENT}",
            "inputs and outputs are float32 numbers, between 1e-45 and 3.5e38",
        )
    power = int(found[4] or "0") - len(found[3] or "")
    value = Fraction(int(digits)) * Fraction(10) ** power
    return -value if found[1] == "-" else value


def bounded(value: Fraction) -> Fraction:
    """The value itself. Raises PropertyError where its numerator or denominator is huge."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise PropertyError(
            "property_too_large", f"a constant expression takes more than {MAX_BITS} bits"
        )
    return value


def decimal_text(value: Fraction) -> str | None:
    """The value as a decimal that ``numeral`` reads back exactly; None where it is no decimal."""
    twos, fives, rest = 0, 0, value.denominator
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return None
    places = max(twos, fives)
    digits = str(value.numerator * 10**places // value.denominator)
    return digits if places == 0 else f"{digits}e-{places}"
