"""Norms of polynomials of skew matrices: sup |p(it)| over an interval, proved in exact rationals.

A real skew-symmetric J is normal with eigenvalues i t, |t| <= |J|, hence |p(J)| is the largest
|p(it)| over them. q(s) = |p(it)|^2 with s = t^2 is a polynomial with rational coefficients; its
Bernstein coefficients over an interval bound it there. For the exponential series of degree d = 0
or 3 (mod 4), q - 1 is s^m times a negative number near 0, so that the truncated series is a
contraction up to some t (3.39 for degree 8, 3.37 for 12): that factor is split off exactly.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

from workers.verification.numerics import raised

__all__ = ["exponential_series", "imaginary_supremum"]

#: Halvings of the interval at most, and the width of the answer that is good enough: absolute up
#: to 1, relative above.
HALVINGS, WIDTH = 60, Fraction(1, 10**12)
#: Squares of values that are numbers of use; a Fraction may hold what no float does.
LARGEST = 2**1000


def exponential_series(degree: int) -> tuple[Fraction, ...]:
    """Coefficients 1 / j! of the truncated exponential, j = 0 ... degree."""
    return tuple(Fraction(1, math.factorial(j)) for j in range(degree + 1))


@functools.lru_cache(maxsize=1024)
def imaginary_supremum(coefficients: tuple[Fraction, ...], reach: float) -> float:
    """Upper bound on |sum_j coefficients[j] (it)^j| over |t| <= reach; within 1e-12, at least.

    Exactly 1 where the polynomial is proved to be nowhere above it and coefficients[0] = 1.
    Infinite where reach is not finite, or the polynomial beyond ``LARGEST``.
    """
    if not math.isfinite(reach) or reach < 0.0:
        return math.inf
    excess = _squared(coefficients)
    excess[0] -= 1
    zeros = next((j for j, value in enumerate(excess) if value), len(excess))
    if zeros == len(excess):
        return 1.0
    interval = Fraction(reach) ** 2
    # excess(s) = s^zeros rest(s): where rest is not positive, neither is it.
    rest = _bernstein(excess[zeros:], interval)
    above = _maximum(rest, sign_only=True)
    if above <= 0:
        return 1.0
    most = _maximum(_bernstein(excess, interval), sign_only=False)
    if most > LARGEST:
        return math.inf
    return raised(math.sqrt(1.0 + float(max(most, Fraction(0)))))


def _squared(coefficients: Sequence[Fraction]) -> list[Fraction]:
    """q(s) with q(t^2) = |p(it)|^2."""
    even = [value * (-1) ** j for j, value in enumerate(coefficients[0::2])]
    odd = [value * (-1) ** j for j, value in enumerate(coefficients[1::2])]
    result = [Fraction(0)] * (2 * max(len(even), len(odd)))
    for part, shift in ((even, 0), (odd, 1)):
        for i, first in enumerate(part):
            for j, second in enumerate(part):
                result[i + j + shift] += first * second
    return result


def _bernstein(power: Sequence[Fraction], interval: Fraction) -> list[Fraction]:
    """Bernstein coefficients over [0, interval] of a polynomial in the power basis."""
    degree = len(power) - 1
    scaled = [value * interval**j for j, value in enumerate(power)]
    return [
        sum(
            (Fraction(math.comb(i, j), math.comb(degree, j)) * scaled[j] for j in range(i + 1)),
            Fraction(0),
        )
        for i in range(degree + 1)
    ]


def _maximum(coefficients: list[Fraction], *, sign_only: bool) -> Fraction:
    """Upper bound on the polynomial over the interval, within ``WIDTH``; ``sign_only``: anything
    not above 0 proves as much, and anything above 0 is enough to know."""
    least = max(coefficients[0], coefficients[-1])
    pieces, settled = [coefficients], Fraction(-1) if sign_only else least
    for _ in range(HALVINGS):
        least = max([least, *(max(piece[0], piece[-1]) for piece in pieces)])
        if sign_only and least > 0:
            return least
        goal = Fraction(0) if sign_only else least + WIDTH * max(Fraction(1), least)
        still = [piece for piece in pieces if max(piece) > goal]
        settled = max([settled, *(max(piece) for piece in pieces if max(piece) <= goal)])
        if not still:
            return settled
        pieces = [half for piece in still for half in _halves(piece)]
    return max([settled, *(max(piece) for piece in pieces)])


def _halves(coefficients: list[Fraction]) -> tuple[list[Fraction], list[Fraction]]:
    """De Casteljau at the middle."""
    left, right, row = [], [], coefficients
    while row:
        left.append(row[0])
        right.append(row[-1])
        row = [(a + b) / 2 for a, b in itertools.pairwise(row)]
    return left, right[::-1]
