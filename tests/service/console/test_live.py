"""Pages that follow jobs: rows and progress as they change, for many viewers at the cost of one."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from html import unescape
from typing import Any

import httpx
import pytest

from service.console.pages import job as job_page
from service.contract.ledger.ledger import Lease, Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.submissions import DatasetSource, JobSubmission
from service.contract.storage.store import Store
from tests.service.conftest import eventually
from tests.service.console.conftest import PAGE

Make = Callable[..., JobSubmission]


class Viewer(threading.Thread):
    """Collects the events of a stream: (name, HTML)."""

    def __init__(self, api: httpx.Client, path: str) -> None:
        super().__init__(daemon=True)
        self.address = str(api.base_url).rstrip("/") + path
        self.events: list[tuple[str, str]] = []
        self.opened, self.over = threading.Event(), threading.Event()
        self.start()
        assert self.opened.wait(60)

    def run(self) -> None:
        with httpx.stream("GET", self.address, timeout=60) as answer:
            assert answer.status_code == 200
            self.opened.set()
            name = ""
            data: list[str] = []
            for line in answer.iter_lines():
                if self.over.is_set():
                    return
                kind, _, value = line.partition(": ")
                if kind == "event":
                    name = value
                elif kind == "data":
                    data.append(value)
                elif not line and name:
                    self.events.append((name, "\n".join(data)))
                    name, data = "", []

    def leave(self) -> None:
        """Close the stream of a list, which has no end, with the next line of it."""
        self.over.set()
        self.join(60)

    def names(self) -> list[str]:
        return [name for name, _ in self.events]


def begun(ledger: Ledger, job: JobSubmission) -> None:
    lease = ledger.lease(job.id, worker="w")
    assert isinstance(lease, Lease)
    ledger.progress(job.id, "prepare", 1, total=4, message="<b>half</b>")


def test_rows_change_and_new_jobs_are_announced(
    api: httpx.Client, ledger: Ledger, store: Store, make_submission: Make
) -> None:
    job = make_submission()
    ledger.create(job)
    viewer = Viewer(api, "/console/jobs/events?status=queued&status=running&status=cancelled")
    begun(ledger, job)
    eventually(lambda: any("&lt;b&gt;half" in html for _, html in viewer.events))
    row = viewer.events[-1][1]
    assert row.startswith(f'<tr id="job-{job.id}"')
    assert 'class="state running"' in row
    assert "list" not in viewer.names()
    other = make_submission()
    ledger.create(other)
    eventually(lambda: "list" in viewer.names())
    # Everything is in the events: nobody has to ask for the list.
    told = dict(viewer.events)
    assert [told[f"count-{name}"] for name in ("queued", "running", "failed")] == ["1", "1", "0"]
    assert "Cancel 2" in told["bulk"]
    ids = re.findall(r'<tr id="job-(\w+)"', told["list"])
    assert ids == [other.id, job.id]
    assert "&lt;b&gt;half" in told["list"]
    begun(ledger, other)
    eventually(lambda: f"job-{other.id}" in viewer.names())
    conclude(store, ledger, job, "cancelled")
    eventually(lambda: any("state cancelled" in html for _, html in viewer.events))
    viewer.leave()


def test_a_page_that_shows_another_list_is_told_at_once(
    api: httpx.Client, ledger: Ledger, make_submission: Make
) -> None:
    """What came between the page and its stream, or while a browser was away."""
    first = make_submission()
    ledger.create(first)
    page = api.get("/?status=queued", headers=PAGE).text
    address = unescape(re.findall(r'sse-connect="([^"]+)"', page)[0])
    same = Viewer(api, address)
    eventually(lambda: f"job-{first.id}" in same.names())
    assert "list" not in same.names()
    same.leave()
    later = make_submission()
    ledger.create(later)
    behind = Viewer(api, address)
    eventually(lambda: "list" in behind.names())
    assert f'id="job-{later.id}"' in dict(behind.events)["list"]
    behind.leave()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every look of the service at a job for the sake of viewers."""
    seen: list[Any] = []
    plain = job_page._progress
    monkeypatch.setattr(job_page, "_progress", lambda *of: seen.append(of) or plain(*of))
    return seen


def test_many_viewers_of_a_job_cost_few_looks_and_all_see_its_end(
    api: httpx.Client, ledger: Ledger, store: Store, make_submission: Make, looks: list[Any]
) -> None:
    job = make_submission()
    ledger.create(job)
    start = time.monotonic()
    viewers = [Viewer(api, f"/jobs/{job.id}/view/events") for _ in range(12)]
    begun(ledger, job)
    eventually(lambda: all("progress" in viewer.names() for viewer in viewers))
    conclude(store, ledger, job, "succeeded")
    eventually(lambda: all(viewer.names()[-1] == "ended" for viewer in viewers))
    # One each to begin with, and then one every half second for all of them together, where twelve
    # viewers by themselves would take six every second.
    assert len(looks) <= 12 + 4 + (time.monotonic() - start) / 0.5
    late = Viewer(api, f"/jobs/{job.id}/view/events")
    eventually(lambda: late.names() == ["ended"])


def test_a_trainings_curve_grows_while_it_is_watched(
    api: httpx.Client, ledger: Ledger, store: Store, make_submission: Make
) -> None:
    plan = {
        "method": "emma", "recipe": "fast", "norm": "l2", "epsilon": "1/2", "seed": 3,
        "architecture": "cifar-6c2f", "hyperparameters": {"epochs": 9},
    }  # fmt: skip
    data = DatasetSource(kind="digits", name="digits", split="train")
    job = make_submission(
        kind="train", training=plan, training_dataset=data, spec={}, model=None, dataset=None
    )
    ledger.create(job)
    viewer = Viewer(api, f"/jobs/{job.id}/view/events")
    store.job_dir(job.id)
    store.training_dir(job.id).mkdir()
    history = []
    for epoch in (1, 2):
        history.append({"epoch": epoch, "loss": 1.5, "accuracy": 0.5, "robust": 0.25})
        store.write_json(store.training_dir(job.id) / "history.json", {"history": history})
        told = f"After epoch {epoch} of 9: loss 1.5, clean accuracy 50.0 %, robust 25.0 %"
        eventually(lambda told=told: any(told in html for _, html in viewer.events))
    curve = [html for name, html in viewer.events if name == "curve"][-1]
    charts = [json.loads(unescape(text)) for text in re.findall(r'data-chart="([^"]*)"', curve)]
    assert [(chart["title"], chart["x"], chart["end"]) for chart in charts] == [
        ("Accuracy", [1, 2], 9), ("Loss", [1, 2], 9),
    ]  # fmt: skip
    lines = {line["name"]: line["values"] for line in charts[0]["lines"]}
    assert lines == {"clean, training": [0.5, 0.5], "robust, training (estimate)": [0.25, 0.25]}
    conclude(store, ledger, job, "cancelled")
    eventually(lambda: viewer.names()[-1] == "ended")
