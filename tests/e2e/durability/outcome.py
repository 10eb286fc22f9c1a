"""What becomes of a job that something was killed under: the outcome of a calm run, once."""

from __future__ import annotations

import json
from typing import Any

from service.contract.processes import wait_until
from tests.e2e.live_service import SAMPLES, LiveService, finished

__all__ = ["check_once"]


def result(report: dict[str, Any]) -> dict[str, Any]:
    """What two runs of one job must agree in."""
    # A certificate names its job.
    runs = ("job_id", "timing", "device", "created_at", "signature", "result_digest")
    runs += ("certificate_digest",)
    return {name: value for name, value in report.items() if name not in runs}


def check_once(service: LiveService, job_id: str, calm: dict[str, Any]) -> None:
    """One outcome, one report, every sample in it once, and the calm run's result."""
    report = finished(service, job_id)
    assert result(report) == result(calm)
    assert report["result_digest"] == calm["result_digest"]
    folder = service.data_dir / "jobs" / job_id
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(SAMPLES))
    written = (folder / "outcome.json").stat().st_mtime_ns
    assert json.loads((folder / "outcome.json").read_text())["status"] == "succeeded"
    assert json.loads((folder / "report.signed.json").read_text()) == report
    assert json.loads((folder / "report.json").read_text()) == {**report, "signature": None}
    assert not wait_until(lambda: (folder / "outcome.json").stat().st_mtime_ns != written, 1.5)
    assert not list(folder.glob(".*"))
