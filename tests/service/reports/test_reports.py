"""Pages, tables and charts of every report: well-formed, escaped, self-contained."""

from __future__ import annotations

import csv
import io
import re
from fractions import Fraction
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from service.reports import render_csv, render_html, render_svg
from service.reports.accuracy_curve import axis_end
from service.reports.epsilon_names import epsilon_name, epsilon_names
from service.reports.evidence import criterion
from service.reports.training_curve import render_training_svg
from tests.report_cases import UPLOAD, cases, finished
from workers.jobs.report.statement import statement

Case = tuple[Any, dict[str, Any], Any]
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Strict(HTMLParser):
    """Fails on tags that do not match; collects what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        for name, value in attrs:
            self.scripts += name.startswith("on")
            if name in ("src", "href", "action") and value and not value.startswith("#"):
                self.loads.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@given(cases())
@settings(max_examples=40, deadline=None)
def test_the_page_is_well_formed_and_needs_nothing_from_outside(case: Case) -> None:
    report, rows = finished(case)
    page = render_html(report, rows)
    parser = Strict()
    parser.feed(page)
    parser.close()
    # Of a file that is not the uploaded one the page says so in words and with both digests.
    rewritten = report["model"]["rewritten_from"] is not None
    assert (UPLOAD in page) == rewritten
    assert ("NOT the uploaded one" in page) == rewritten
    assert not parser.open
    assert not parser.loads
    assert not parser.scripts
    assert "url(" not in page
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", page, re.S)[0] or "49" in str(report["model"])


@given(cases())
@settings(max_examples=40, deadline=None)
def test_the_chart_is_a_standalone_described_svg(case: Case) -> None:
    report, _ = finished(case)
    root = ElementTree.fromstring(render_svg(report))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    names = {child.tag.rsplit("}")[-1] for child in root}
    assert {"title", "desc"} <= names
    assert "nan" not in render_svg(report).lower().replace("finance", "")
    assert not root.findall(".//{http://www.w3.org/2000/svg}script")


@given(cases())
@settings(max_examples=40, deadline=None)
def test_the_table_reads_back_with_the_contracts_columns(case: Case) -> None:
    report, rows = finished(case)
    table = list(csv.reader(io.StringIO("".join(render_csv(report, rows)))))
    assert table[0][:6] == ["index", "label", "prediction", "margin", "radius", "method"]
    assert len(table[0]) == 6 + 2 * len(report["threat"]["epsilons"])
    assert [name.split("@")[0] for name in table[0][6:8]] == ["certified", "falsified"]
    assert len(table) == 1 + len(rows)
    for line, row in zip(table[1:], rows, strict=True):
        assert int(line[0]) == row["index"]
        assert line[5] == row["method"]
        assert not line[5].startswith(("=", "+", "-", "@"))


@given(cases(), st.sampled_from("=+-@\t\r"), st.text(max_size=9))
@settings(max_examples=20, deadline=None)
def test_no_cell_of_a_table_begins_like_a_formula(case: Case, start: str, rest: str) -> None:
    report, rows = finished(case)
    named = [{**row, "method": start + rest} for row in rows]
    text = "".join(render_csv(report, named))
    for line in list(csv.reader(io.StringIO(text, newline="")))[1:]:
        assert line[5] == "'" + start + rest
        numbers = [cell for cell in line[:5] + line[6:] if cell.startswith(("=", "+", "@"))]
        assert not numbers


def test_an_estimate_says_so_in_capitals() -> None:
    text = statement(
        norm="l2", soundness="estimate", valid=None, labelled=True, failure_probability=0.0
    )
    assert "ESTIMATE" in text


def _steps(svg: str, kind: str) -> list[tuple[float, float]]:
    """Corners of the line of a class, in the chart's units (y grows downwards)."""
    found = re.search(rf'<path class="{kind}" d="([^"]+)"', svg)
    if found is None:
        return []
    x = y = 0.0
    corners = []
    for letter, numbers in re.findall(r"([MHV])([^MHV]+)", found[1]):
        values = [float(number) for number in numbers.split()]
        x = values[0] if letter in "MH" else x
        y = values[-1] if letter in "MV" else y
        corners.append((x, y))
    return corners


@given(cases())
@settings(max_examples=40, deadline=None)
def test_what_an_attack_left_is_never_drawn_below_what_is_certified(case: Case) -> None:
    report, _ = finished(case)
    svg = render_svg(report)
    attacked, certified = _steps(svg, "attacked"), _steps(svg, "certified")
    assert bool(attacked) == any(
        row["attack_accuracy"] is not None and row["epsilon"] <= axis_end(report)
        for row in report["results"]
    )
    for x, y in certified if attacked else ():
        # The line of the attack holds from its corner on, that of the certificate up to its own.
        left = [height for place, height in attacked if place <= x][-1]
        assert left <= y + 0.02, (x, y)


@given(st.integers(1, 2000), st.sampled_from([1, 2, 10, 100, 255, 1000]))
def test_an_epsilon_is_called_what_it_is(numerator: int, denominator: int) -> None:
    exact = Fraction(numerator, denominator)
    name = epsilon_name(str(exact))
    assert Fraction(name) == exact
    if denominator == 255 and exact.denominator not in (1, 5):
        assert name == f"{numerator}/255"
    if denominator in (1, 10, 100, 1000):
        assert "/" not in name


def test_a_curve_of_one_epoch_has_something_to_see() -> None:
    plan = {"method": "emma", "epsilon": "1/2", "hyperparameters": {"epochs": 1}}
    row = {"epoch": 1, "loss": 1.0, "accuracy": 0.5, "robust": 0.25}
    assert render_training_svg(plan, [row]).count("<circle") == 2
    assert "<circle" not in render_training_svg(plan, [])


def test_a_criterion_is_about_its_own_epsilon_and_not_about_one_of_the_same_name() -> None:
    texts = ["0.12345678901", "0.12345678902"]
    assert epsilon_name(texts[0]) == epsilon_name(texts[1])
    rows = [
        {"epsilon": float(text), "epsilon_exact": text, "certified_accuracy": share}
        for text, share in zip(texts, (0.5, 0.25), strict=True)
    ]
    for text, share in zip(texts, (0.5, 0.25), strict=True):
        wish = {"epsilon": text, "certified_accuracy": 0.3, "met": share >= 0.3}
        found = criterion({"results": rows, "criterion": wish})
        assert found is not None
        assert (found["reached"], found["met"]) == (share, share >= 0.3)


@given(cases(), st.booleans())
@settings(max_examples=10, deadline=None)
def test_the_page_says_at_its_top_whether_the_criterion_is_met(case: Case, met: bool) -> None:
    report, rows = finished(case)
    wish = {"epsilon": report["threat"]["epsilons_exact"][0], "certified_accuracy": 0.5}
    page = render_html({**report, "criterion": {**wish, "met": met}}, rows)
    verdict, other = ("PASS", "FAIL") if met else ("FAIL", "PASS")
    assert f"<strong>{verdict}</strong>" in page
    assert f"<strong>{other}</strong>" not in page
    assert page.index(verdict) < page.index("Headline figures")
    assert "conforms" not in page
    for term in ("Domain", "Property", "Criterion", "Certainty", "Arithmetic"):
        assert f"<dt>{term}</dt>" in page


@given(cases())
@settings(max_examples=5, deadline=None)
def test_the_page_shows_the_training_and_the_counterexamples_it_is_given(case: Case) -> None:
    report, rows = finished(case)
    plan = {
        "method": "emma", "recipe": "fast", "norm": "l2", "epsilon": "79/50", "seed": 3,
        "architecture": {"name": "<b>net</b>"}, "hyperparameters": {"epochs": 2},
    }  # fmt: skip
    history = [{"epoch": 1, "loss": 1.0, "accuracy": 0.5, "robust": 0.25}]
    falsified = [True] * len(report["results"])
    picture = {
        "index": 7, "label": 1, "falsified": falsified,
        "sample": b"A", "counterexample": b"B", "difference": None,
    }  # fmt: skip
    page = render_html(
        report, rows, training={"plan": plan, "history": history}, pictures=[picture]
    )
    assert "<dd>emma</dd>" in page
    assert "<dd>l2 ε = 1.58</dd>" in page
    assert "&lt;b&gt;net" in page
    assert page.count('src="data:image/png;base64,') == 2
    smallest = min(
        zip(map(float, report["threat"]["epsilons"]), epsilon_names(report), strict=True)
    )[1]
    assert f"sample 7, label 1; ε = {smallest}</figcaption>" in page
