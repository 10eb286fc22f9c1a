"""sup |p(it)| of truncated exponentials, against the known stability intervals."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.extent import examples
from workers.verification.norms.power_series import exponential_series, imaginary_supremum


@pytest.mark.parametrize(
    ("degree", "inside", "outside"),
    [
        (3, math.sqrt(3) - 1e-9, math.sqrt(3) + 1e-3),
        (4, math.sqrt(8) - 1e-9, math.sqrt(8) + 1e-3),
        (8, 3.3951, 3.3952),
        (11, 1.7011, 1.7014),
        (12, 3.3793, 3.3795),
        (16, 3.3248, 3.326),
        (20, 3.2903, 3.3),
    ],
)
def test_the_series_is_exactly_a_contraction_up_to_there(
    degree: int, inside: float, outside: float
) -> None:
    series = exponential_series(degree)
    assert imaginary_supremum(series, inside) == 1.0
    assert imaginary_supremum(series, outside) > 1.0


@pytest.mark.parametrize(
    ("degree", "reach", "excess"),
    [
        (5, 0.5, 2.0e-5),
        (5, 1.0, 9.0e-4),
        (5, 1.5, 4.5e-3),
        # One peak, at 1.592, is the largest value up to 3.397.
        (5, 1.592, 4.74e-3),
        (5, 3.0, 4.74e-3),
        (5, 3.396, 4.74e-3),
        (11, 3.0, 1.0e-3),
        (14, 2.0, 2.4e-8),
        (14, 2.5, 5.0e-7),
        (14, 3.0, 3.48e-6),
        # The same at 3.1416 and up to 6.
        (14, 3.1416, 4.17e-6),
        (14, 6.0, 4.17e-6),
    ],
)
def test_other_degrees_the_published_ones_among_them_are_none(
    degree: int, reach: float, excess: float
) -> None:
    found = imaginary_supremum(exponential_series(degree), reach) - 1.0
    assert found == pytest.approx(excess, rel=0.03)


@pytest.mark.parametrize(
    ("degree", "reach", "least", "digits"),
    [
        (3, math.sqrt(3), 0.943, 3),
        (4, math.sqrt(8), 0.5, 3),
        (5, 3.0, 0.54, 2),
        (8, 3.0, 0.97902, 5),
        (12, 3.0, 0.999913, 6),
        (14, 3.0, 1.0, 8),
        (16, 3.0, 0.9999999, 7),
    ],
)
def test_a_series_takes_so_much_of_a_gradient_at_most(
    degree: int, reach: float, least: float, digits: int
) -> None:
    t = np.linspace(0, reach, 4001)
    value = np.abs(sum(float(a) * (1j * t) ** j for j, a in enumerate(exponential_series(degree))))
    assert value.min() == pytest.approx(least, abs=10.0**-digits)


@pytest.mark.parametrize("degree", [8, 12, 16])
def test_deployed_degrees_never_lengthen(degree: int) -> None:
    assert all(imaginary_supremum(exponential_series(degree), r) == 1.0 for r in (0.0, 1.0, 3.2))


@given(
    coefficients=st.lists(st.fractions(-3, 3, max_denominator=64), min_size=1, max_size=9),
    reach=st.floats(0, 6),
)
@settings(max_examples=examples(150), deadline=None)
def test_no_point_of_the_interval_lies_above(coefficients: list[Fraction], reach: float) -> None:
    series = (Fraction(1), *coefficients)
    bound = imaginary_supremum(series, reach)
    t = np.linspace(0, reach, 4001)
    value = np.abs(sum(float(a) * (1j * t) ** j for j, a in enumerate(series)))
    assert value.max() <= bound * (1 + 1e-12)
    assert bound <= value.max() * (1 + 1e-4) + 1e-6


def test_an_unknown_reach_bounds_nothing() -> None:
    assert imaginary_supremum(exponential_series(12), math.inf) == math.inf
    assert imaginary_supremum(exponential_series(12), math.nan) == math.inf
