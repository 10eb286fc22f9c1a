"""What a person sees of a job in hand, in a terminal and in a log."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from service.cli import terminal
from service.cli.terminal import criterion_status, print_summary, progress_bar


def training(done: int, *, status: str = "running", eta_s: float | None = 61.0) -> dict[str, Any]:
    progress = {
        "done": done, "total": 900, "unit": "steps", "message": "epoch 3 of 24", "eta_s": eta_s,
    }  # fmt: skip
    return {"status": status, "progress": progress}


def test_a_log_gets_a_line_now_and_then_and_every_status() -> None:
    """Steps change with every look: they are no reason for a line each."""
    out = io.StringIO()
    with progress_bar(Console(file=out, width=200)) as show:
        for done in range(100, 160):
            show(training(done))
        show(training(900, status="succeeded", eta_s=None))
    assert out.getvalue().splitlines() == [
        "running: epoch 3 of 24 100/900 steps, 0:01:01 left",
        "succeeded: epoch 3 of 24 900/900 steps",
    ]


def test_a_log_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PLAIN_EVERY_S", 0.0)
    out = io.StringIO()
    with progress_bar(Console(file=out, width=200)) as show:
        for done in (100, 100, 101):
            show(training(done))
    assert [line.split()[5] for line in out.getvalue().splitlines()] == ["100/900", "101/900"]


def test_the_bar_shows_the_services_estimate() -> None:
    """Of a job that is watched from its middle on, after one look."""
    out = io.StringIO()
    with progress_bar(Console(file=out, width=200, force_terminal=True)) as show:
        show(training(450))
    assert "450/900" in out.getvalue()
    assert "0:01:01 left" in out.getvalue()


HOSTILE = "[/][red]a\x1b[31m[link=file:///etc/passwd]net.onnx"


def report(**changes: Any) -> dict[str, Any]:
    row = {
        "epsilon": 36 / 255, "epsilon_exact": "12/85", "certified_accuracy": 0.62,
        "attack_accuracy": 0.7, "undecided": 8,
    }  # fmt: skip
    return {
        "model": {"name": HOSTILE, "id": "sha256:0", "parameters": 12, "layers": [1]},
        "dataset": {"name": HOSTILE, "samples": 100}, "threat": {"norm": "l2"},
        "method": "auto", "soundness": "sound", "clean_accuracy": 0.9, "results": [row],
        "radius": None,
        "by_method": {"crown": 62}, "device": "cpu", "warnings": [f"odd: {HOSTILE}"],
        "timing": {"wall_s": 1.0, "samples_per_s": 100.0}, **changes,
    }  # fmt: skip


def printed(shown: dict[str, Any]) -> str:
    out = io.StringIO()
    print_summary(Console(file=out, width=200, force_terminal=True), shown)
    return out.getvalue()


@pytest.mark.parametrize("met", [True, False])
def test_a_criterion_is_printed_and_decides_the_exit_status(met: bool) -> None:
    wish = {"epsilon": "12/85", "certified_accuracy": 0.6 if met else 0.621, "met": met}
    judged = report(criterion=wish)
    text = printed(judged)
    assert ("PASS" in text, "FAIL" in text) == (met, not met)
    assert "36/255" in text
    assert "neither proved nor broken by an attack; what may decide it: --effort exhaustive" in text
    assert "reached 62.00 %" in text
    assert criterion_status(judged) == (0 if met else 1)
    assert criterion_status(report()) == 0


def test_names_from_uploads_are_no_markup() -> None:
    """Neither for the printer, which a stray tag would break, nor for the terminal."""
    verdict = {
        "verdict": "unknown",
        "name": HOSTILE,
        "method": "undecided",
        "proved": 0,
        "boxes": 1,
    }
    for shown in (report(), report(property=verdict, dataset=None, threat=None)):
        text = printed(shown)
        assert "[link=file:///etc/passwd]net.onnx" in text
        assert "\x1b[31m" not in text
        assert "by undecided" not in text
