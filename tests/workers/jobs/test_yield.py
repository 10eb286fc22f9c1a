"""A training in hand lets a small certification through, and goes on where it stopped."""

from __future__ import annotations

from typing import Any

import pytest

import workers.jobs.work_loop
from service.contract.ids import new_job_id
from service.contract.ledger.ledger import Ledger
from service.contract.schemas.submissions import DatasetSource, JobSubmission
from service.contract.schemas.training_plans import TrainSpec
from service.contract.times import now, rfc3339
from service.recipes.plans import plan_of
from tests.workers.jobs.conftest import Corridor
from workers.jobs.work_loop import WorkLoop

EPOCHS = 30


def training(corridor: Corridor) -> JobSubmission:
    spec = TrainSpec(
        method="standard",
        dataset="digits",
        epsilon="0.1",  # type: ignore[arg-type]
        architecture={"name": "orthogonal-dense", "input": [1, 8, 8], "widths": [16]},
        recipe={"activation": "maxmin"},
        epochs=EPOCHS,
        certify=None,
    )
    submission = JobSubmission(
        id=new_job_id(),
        kind="train",
        spec={},
        model=None,
        dataset=None,
        training=plan_of(spec, "digits", held_out=0.0).normal(),
        training_dataset=DatasetSource(kind="digits", name="digits", split="train"),
        created_at=rfc3339(now()),
    )
    assert corridor.ledger.create(submission)
    return submission


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
