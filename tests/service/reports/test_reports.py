"""Pages, tables and charts of every report: well-formed, escaped, self-contained."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

from hypothesis import given, settings

from service.reports import render_csv, render_html, render_svg
from tests.report_cases import cases, finished
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


def test_an_estimate_says_so_in_capitals() -> None:
    text = statement(
        norm="l2", soundness="estimate", clip=True, labelled=True, failure_probability=0.0
    )
    assert "ESTIMATE" in text
