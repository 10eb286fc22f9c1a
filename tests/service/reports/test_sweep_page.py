"""The page of a sweep: every model with its figures and ids, self-contained, names are text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import escape

from service.reports import render_sweep_html
from service.reports.axes import percent
from service.reports.plain_text import plain
from tests.report_cases import cases, finished

Case = tuple[Any, dict[str, Any], Any]
VOID = {"meta", "link", "br", "hr", "img", "input"}
NAMES = st.text(max_size=30) | st.sampled_from(
    ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "\u202eNO PROOF", "{{ 7*7 }}"]
)


class Contents(HTMLParser):
    """Fails on tags that do not match; collects words, and what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        names = {name for name, _ in attrs}
        if tag in ("script", "img", "a", "form", "link") or names & {"src", "href", "action"}:
            self.wrong.append(tag)
        self.wrong += [name for name in names if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def read(page: str) -> str:
    """The words of the page, which is well-formed and needs and runs nothing."""
    parser = Contents()
    parser.feed(page)
    parser.close()
    assert not parser.open
    assert not parser.wrong
    assert '<meta name="viewport"' in page
    assert "@page{size:A4" in page
    return re.sub(r"\s+", " ", " ".join(parser.words))


def sweep(case: Case, name: str, values: list[Any], **changes: Any) -> dict[str, Any]:
    """A sweep over these values; all models but the last have the report of the case."""
    report, _ = finished(case)
    models: list[dict[str, Any]] = [
        {
            "value": value, "job_id": f"j.{place}", "model_id": f"sha256:{place:064d}",
            "error": None,
            "report": {**report, "result_digest": f"sha256:{place:063d}r", **changes},
        }
        for place, value in enumerate(values[:-1])
    ]  # fmt: skip
    problem = {"code": "training_diverged", "title": "t", "status": 422, "detail": f"bad {name}"}
    last = {"value": values[-1], "job_id": f"j.{len(models)}", "model_id": None, "report": None}
    first = report["results"][0]
    points = [
        {
            "value": model["value"], "model_id": model["model_id"],
            "soundness": model["report"]["soundness"],
            "clean_accuracy": report["clean_accuracy"],
            "certified_accuracy": first["certified_accuracy"],
            "attack_accuracy": first["attack_accuracy"],
            "samples": report["dataset"]["samples"], "on_front": True, "links": {},
        }
        for model in models
    ]  # fmt: skip
    return {
        "pareto": {
            "job_id": "j", "parameter": name, "norm": report["threat"]["norm"],
            "epsilon": first["epsilon"], "epsilon_exact": first["epsilon_exact"], "points": points,
        },
        "plan": {
            "method": name, "recipe": "fast", "norm": "l2", "epsilon": "79/50", "seed": 12345,
            "architecture": {"name": name},
            "hyperparameters": {
                "epochs": 77, "optimizer": name, "options": {"share_of_it": [0.125, name]},
            },
        },
        "spec": report["spec"], "created_at": "2026-01-31T12:00:00.000000Z",
        "dataset": name, "trained_on": name, "models": [*models, {**last, "error": problem}],
    }  # fmt: skip


@given(cases(), NAMES, st.lists(NAMES | st.integers() | st.floats(), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_the_page_is_well_formed_and_whatever_things_are_called_is_text(
    case: Case, name: str, values: list[Any]
) -> None:
    page = render_sweep_html(sweep(case, name, values))
    read(page)
    assert str(escape(plain(name))) in page
    for bad in ("<script", "<img", "\u202e", "\x00"):
        assert bad not in page


@given(cases())
@settings(max_examples=15, deadline=None)
def test_every_model_is_there_with_figures_ids_and_how_it_came_about(case: Case) -> None:
    wanted = sweep(case, "alpha", [0.1, 0.2, 0.3])
    words = read(render_sweep_html(wanted))
    report = wanted["models"][0]["report"]
    for model in wanted["models"][:-1]:
        for told in (model["job_id"], model["model_id"], report["graph_digest"]):
            assert told in words
        assert model["report"]["result_digest"] in words
        assert f"alpha = {model['value']}" in words
    assert "training_diverged" in words
    assert "bad alpha" in words
    for row in report["results"]:
        assert percent(row["certified_accuracy"]) in words
    for name, version in report["versions"].items():
        assert f"{name} {version}" in words
    assert "seed 12345" in words
    assert "epochs 77" in words
    assert 'share of it [0.125, "alpha"]' in words


@pytest.mark.parametrize("soundness", ["sound", "estimate"])
@given(case=cases())
@settings(max_examples=5, deadline=None)
def test_an_estimate_is_said_to_be_one(soundness: str, case: Case) -> None:
    words = read(render_sweep_html(sweep(case, "alpha", [0.1, 0.2], soundness=soundness)))
    assert ("ESTIMATE – NOT A PROOF" in words) == (soundness == "estimate")
    assert ("SOUND" in words) == (soundness == "sound")


@given(cases())
@settings(max_examples=5, deadline=None)
def test_warnings_are_said_once_with_the_models_that_have_them(case: Case) -> None:
    changes = {"warnings": ["few samples"], "budget_spent": True}
    words = read(render_sweep_html(sweep(case, "alpha", [0.1, 0.2, 0.3], **changes)))
    assert words.count("few samples") == 1
    assert "alpha = 0.1, 0.2: few samples" in words
    assert "the budget was spent" in words
