"""Text from elsewhere is read and never obeyed: neither as markup, nor by its control signs."""

from __future__ import annotations

import unicodedata
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from service.reports import render_html, render_pareto_svg
from service.reports.plain_text import finalize, plain
from tests.report_cases import cases, finished

Case = tuple[Any, dict[str, Any], Any]

#: Names that try to be markup, to leave an attribute, and to turn the text behind them around.
HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "]]></title></svg><script>alert(1)</script>",
    "{{ 7 * 7 }}&amp;&#60;script&#62;",
    "\u202eNO PROOF\u202c \u2066x\u2069",
    "\x00\x07\x1b[31m\x9b\ud800\uffff",
)
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
SHAPES = {"svg", "title", "desc", "style", "line", "text", "circle", "polyline"}


@given(st.text())
def test_plain_text_has_no_sign_that_is_obeyed_and_all_others(text: str) -> None:
    shown = plain(text)
    assert len(shown) == len(text)
    for before, after in zip(text, shown, strict=True):
        kind = unicodedata.category(before)
        obeyed = before in TURNING or kind == "Cs" or (kind == "Cc" and before not in "\t\n\r")
        assert after == ("\ufffd" if obeyed or before in "\ufffe\uffff" else before)
    assert plain(shown) == shown
    ElementTree.fromstring(f"<a>{Markup.escape(shown)}</a>")


def test_names_in_other_scripts_stay_as_they_are() -> None:
    for name in ("مدل\u200cها.onnx", "דגם\u200f.onnx", "模型 ü\u0301 👩\u200d💻.onnx"):
        assert plain(name) == name
    assert finalize(None) is None
    assert finalize(Markup("<b>\u202e</b>")) == "<b>\u202e</b>"


def front(parameter: str, values: list[Any]) -> dict[str, Any]:
    """A sweep's comparison as GET /jobs/{id}/pareto answers."""
    return {
        "job_id": "j", "parameter": parameter, "norm": "l2", "epsilon": 0.5, "epsilon_exact": "1/2",
        "points": [
            {
                "value": value, "model_id": f"sha256:{place}", "soundness": "sound",
                "clean_accuracy": 0.9 - place / 50, "certified_accuracy": 0.4 + place / 50,
                "attack_accuracy": 0.6, "samples": 3, "on_front": place % 2 == 0, "links": {},
            }
            for place, value in enumerate(values)
        ],
    }  # fmt: skip


@given(st.text(max_size=40), st.lists(st.text(max_size=60) | st.floats(), max_size=5))
@settings(max_examples=15, deadline=None)
def test_a_sweeps_chart_holds_any_name_as_text(parameter: str, values: list[Any]) -> None:
    _holds_only_shapes(render_pareto_svg(front(parameter, values)))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_sweeps_chart_says_a_hostile_name_and_nothing_more(name: str) -> None:
    values = [name, {name: [name]}, 0.5]
    root = _holds_only_shapes(render_pareto_svg(front(name, values)))
    titles = [element.text or "" for element in root.iter() if element.tag.endswith("title")]
    assert titles[1].startswith(f"{plain(name)} = {plain(name)}: clean ")
    assert any(f"{plain(name)} = 0.5" in title for title in titles)
    assert not set(TURNING) & set("".join(root.itertext()))


def _holds_only_shapes(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg.encode("utf-8"))
    assert {element.tag.rpartition("}")[2] for element in root.iter()} <= SHAPES
    names = {name for element in root.iter() for name in element.attrib}
    assert not [name for name in names if name.startswith("on") or "href" in name]
    return root


@given(cases(), st.sampled_from(HOSTILE))
@settings(max_examples=12, deadline=None)
def test_a_report_holds_hostile_names_as_text(case: Case, name: str) -> None:
    report, rows = finished(case)
    report = {
        **report,
        "model": {**report["model"], "name": name, "pairing": {name: name}},
        "dataset": {**report["dataset"], "name": name, "classes": {name: 1}},
        "warnings": [name],
    }
    plan = {
        "method": name, "recipe": name, "norm": "l2", "epsilon": "79/50", "seed": 3,
        "architecture": {"name": name},
        "hyperparameters": {"epochs": 1, "optimizer": name, "activation": name},
    }  # fmt: skip
    history = [{"epoch": 1, "loss": 1.0, "accuracy": 0.5, "robust": 0.25}]
    page = render_html(report, rows, training={"plan": plan, "history": history})
    page.encode("utf-8")
    assert str(Markup.escape(plain(name))) in page
    for bad in ("<script", "<img src=x", "onerror=alert(1)>", "\x00", "\x1b", "</svg><s"):
        assert bad not in page
    assert not set(TURNING) & set(page)
