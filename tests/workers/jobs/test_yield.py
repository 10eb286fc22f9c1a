"""A training in hand lets a small certification through, and goes on where it stopped."""

from __future__ import annotations

from typing import Any

import pytest

import workers.jobs.work_loop
from service.contract.ledger.ledger import Ledger
from service.contract.schemas.submissions import JobSubmission
from service.contract.times import now
from tests.workers.jobs.conftest import Corridor
from tests.workers.jobs.work import EPOCHS, training
from workers.jobs.work_loop import WorkLoop

pytestmark = pytest.mark.usefixtures("forked_inspections")


def test_training_lets_a_small_job_through(
    corridor: Corridor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every step is told, and every step asks who waits: nothing here hangs on the clock.
    monkeypatch.setattr(workers.jobs.work_loop, "YIELD_S", 0.0)
    monkeypatch.setattr(workers.jobs.work_loop, "PROGRESS_S", 0.0)
    job = training(corridor)
    small: list[JobSubmission] = []
    order: list[tuple[str, str]] = []
    told = Ledger.progress

    def progress(ledger: Ledger, job_id: str, item: str, done: Any, **more: Any) -> None:
        told(ledger, job_id, item, done, **more)
        order.append((job_id, item))
        if job_id == job.id and item == "train" and (done or 0) > 2 and not small:
            assert done < more["total"]
            small.append(corridor.submit(samples=5))
            # As if it had waited for long: nobody else is there to take it.
            corridor.redis.hset(f"certserve:job:{small[0].id}", "entered", str(now() - 60))

    monkeypatch.setattr(Ledger, "progress", progress)
    WorkLoop(corridor.settings, corridor.store, corridor.ledger, job.id).work()
    first, last = corridor.outcome(small[0], 0), corridor.outcome(job, 0)
    assert (first["status"], last["status"]) == ("succeeded", "succeeded"), last["error"]
    assert first["finished_at"] < last["finished_at"]
    # The training was at work before and after it.
    place = [job_id for job_id, _ in order].index(small[0].id)
    assert (job.id, "train") in order[:place]
    assert (job.id, "train") in order[place:]
    history = corridor.store.read_json(corridor.store.training_dir(job.id) / "history.json")
    assert history is not None
    assert len(history["history"]) == EPOCHS
