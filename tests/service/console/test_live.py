"""Pages that follow jobs: rows and progress as they change, for many viewers at the cost of one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.console.pages import job as job_page
from service.contract.ledger.ledger import Lease, Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.submissions import JobSubmission
from service.contract.storage.store import Store
from tests.service.conftest import eventually

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
    viewer = Viewer(api, "/console/jobs/events?status=queued&status=running&status=failed")
    begun(ledger, job)
    eventually(lambda: any("&lt;b&gt;half" in html for _, html in viewer.events))
    row = viewer.events[-1][1]
    assert row.startswith(f'<tr id="job-{job.id}"')
    assert 'class="state running"' in row
    assert "list" not in viewer.names()
    ledger.create(make_submission())
    eventually(lambda: "list" in viewer.names())
    conclude(store, ledger, job, "cancelled")
    eventually(lambda: "state cancelled" in viewer.events[-1][1])
    viewer.leave()


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
    viewers = [Viewer(api, f"/jobs/{job.id}/view/events") for _ in range(12)]
    begun(ledger, job)
    eventually(lambda: all("progress" in viewer.names() for viewer in viewers))
    conclude(store, ledger, job, "succeeded")
    eventually(lambda: all(viewer.names()[-1] == "ended" for viewer in viewers))
    # One each to begin with, and a few for all of them together.
    assert len(looks) < 12 + 12
    late = Viewer(api, f"/jobs/{job.id}/view/events")
    eventually(lambda: late.names() == ["ended"])
