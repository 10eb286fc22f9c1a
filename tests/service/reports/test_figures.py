"""Figures for people are rounded to the side on which they stay true: what is proved down, what an
attack left up."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.reports import render_html, render_svg
from service.reports.axes import percent, percent_at_most, radius_text
from tests.report_cases import cases, finished


@given(st.integers(1, 60_000), st.data(), st.integers(0, 2))
def test_a_share_in_percent_lies_between_its_figures(
    count: int, data: st.DataObject, digits: int
) -> None:
    share = Fraction(data.draw(st.integers(0, count)), count)
    low, high = (
        Fraction(text(float(share), digits).removesuffix(" %")) / 100
        for text in (percent, percent_at_most)
    )
    step = Fraction(1, 100 * 10**digits)
    # A float64 is off by less than 1e-15 of 1.
    slack = Fraction(1, 10**15)
    assert share - step < low <= share + slack
    assert share - slack <= high < share + step
    assert high - low in (0, step)


@pytest.mark.parametrize(
    ("share", "down", "up"),
    [
        (0.99996, "99.9 %", "100.0 %"),
        (1.0, "100.0 %", "100.0 %"),
        (0.0004, "0.0 %", "0.1 %"),
        (0.0, "0.0 %", "0.0 %"),
        (0.932, "93.2 %", "93.2 %"),
        (0.29, "29.0 %", "29.0 %"),
        (1e-20, "0.0 %", "0.1 %"),
        (None, "–", "–"),
    ],
)
def test_shares_of_all_sizes(share: float | None, down: str, up: str) -> None:
    assert (percent(share), percent_at_most(share)) == (down, up)


def test_nothing_lies_between_two_figures_of_one_share() -> None:
    share = 160 / 171
    assert percent(share) == percent_at_most(share, certified=share) == "93.5 %"
    assert percent_at_most(share, certified=159 / 171) == "93.6 %"


@given(st.floats(0.0, allow_infinity=False))
def test_a_radius_is_no_less_than_its_figure(radius: float) -> None:
    told = float(radius_text(radius))
    assert told <= radius
    assert told >= radius * (1.0 - 2e-3) or radius < 1e-300
    assert radius_text(told) == radius_text(radius)


def test_radii_of_no_size() -> None:
    assert (radius_text(None), radius_text(0.0), radius_text(math.inf)) == ("–", "0", "inf")
    assert radius_text(0.123456) == "0.1234"


@given(cases())
@settings(max_examples=5, deadline=None)
def test_pages_and_charts_round_so(case: Any) -> None:
    report, rows = finished(case)
    result = report["results"][0]
    result |= {"certified_accuracy": 0.99996, "attack_accuracy": 0.99991}
    page, chart = render_html(report, rows), render_svg(report)
    assert re.search(r'data-name="certified">99\.9 %', page)
    assert re.search(r'data-name="left by attack">100\.0 %', page)
    assert "99.99% certified, 100.00% left by the attack" in chart
