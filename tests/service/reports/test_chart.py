"""The report's chart has what the console's has: band, steps, the asked epsilons by name."""

from __future__ import annotations

import math
import re
import sys
from bisect import bisect_left
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings

from service.reports import render_html, render_svg
from service.reports.accuracy_curve import axis_end, band_half_width
from service.reports.axes import Plot
from service.reports.epsilon_names import epsilon_names
from tests.report_cases import cases, finished

Case = tuple[Any, dict[str, Any], Any]


def test_the_bands_width_is_the_one_of_the_inequality() -> None:
    assert band_half_width(1000) == pytest.approx(0.042947, abs=1e-6)
    for samples in (1, 40, 10_000):
        missed = 2 * math.exp(-2 * samples * band_half_width(samples) ** 2)
        assert missed == pytest.approx(0.05)


@given(cases())
@settings(max_examples=15, deadline=None)
def test_the_band_is_around_the_certified_line_everywhere(case: Case) -> None:
    report, _ = finished(case)
    curve = report["curve"]
    plot = Plot(axis_end(report))
    half = band_half_width(report["dataset"]["samples"])
    path = re.search(r'<path class="band" d="M([^"]+)Z"', render_svg(report))
    assert path is not None
    numbers = [float(number) for number in path[1].split()]
    corners = list(zip(numbers[::2], numbers[1::2], strict=True))
    upper, lower = corners[: len(corners) // 2], corners[len(corners) // 2 :][::-1]
    for (x, high), (also, low) in zip(upper, lower, strict=True):
        assert x == also
        assert low >= high
    # In the middle of every step: what the curve says there, more and less by the same.
    for (left, high), (right, _), (_, low) in zip(upper[::2], upper[1::2], lower[::2], strict=True):
        if right - left < 0.1:
            continue
        middle = (left + right) / 2
        epsilon = (middle - plot.x(0.0)) / (plot.x(plot.x_end) - plot.x(0.0)) * plot.x_end
        share = curve["certified_accuracy"][bisect_left(curve["epsilon"], epsilon)]
        assert high == pytest.approx(plot.y(min(1.0, share + half)), abs=0.02)
        assert low == pytest.approx(plot.y(max(0.0, share - half)), abs=0.02)


@given(cases())
@settings(max_examples=5, deadline=None)
def test_any_finite_epsilon_has_a_chart(case: Case) -> None:
    report, _ = finished(case)
    row = report["results"][0]
    for epsilon in (5e-324, 1.75e308, sys.float_info.max):
        asked = {"epsilons": [epsilon], "epsilons_exact": [str(epsilon)]}
        changed = {
            **report,
            "results": [{**row, "epsilon": epsilon, "epsilon_exact": str(epsilon)}],
            "curve": {"epsilon": [epsilon], "certified_accuracy": [row["certified_accuracy"]]},
            "threat": {**report["threat"], "clip": False, **asked},
            "spec": {**report["spec"], "epsilons": [str(epsilon)]},
        }
        chart = render_svg(changed)
        ElementTree.fromstring(chart)
        assert ">inf<" not in chart


@given(cases())
@settings(max_examples=15, deadline=None)
def test_names_of_asked_epsilons_stand_above_their_marks_and_never_on_each_other(
    case: Case,
) -> None:
    report, _ = finished(case)
    root = ElementTree.fromstring(render_svg(report))
    plot = Plot(axis_end(report))
    texts = [e for e in root.iter() if e.tag.endswith("text") and e.get("y") == str(plot.top - 7)]
    known = set(epsilon_names(report))
    ends = []
    for text in texts:
        assert text.text in known
        half = 4.2 * len(str(text.text))
        ends.append((float(str(text.get("x"))) - half, float(str(text.get("x"))) + half))
    assert all(start >= 0 and end <= plot.width for start, end in ends)
    assert all(end < start for (_, end), (start, _) in pairwise(ends))
    assert bool(texts) == any(row["epsilon"] <= plot.x_end for row in report["results"])


@given(cases())
@settings(max_examples=5, deadline=None)
def test_the_page_says_what_the_band_and_the_intervals_are_of(case: Case) -> None:
    report, rows = finished(case)
    page = render_html(report, rows)
    assert "Dvoretzky-Kiefer-Wolfowitz" in page
    assert "Clopper-Pearson" in page
    assert "about the population" in page
    assert "random draw from it" in page
    assert all(row["interval_95"] for row in report["results"])
