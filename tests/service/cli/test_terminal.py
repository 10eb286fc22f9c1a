"""What a person sees of a job in hand, in a terminal and in a log."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from service.cli import terminal
from service.cli.terminal import progress_bar


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
