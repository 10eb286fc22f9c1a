"""The items of a certification: prepare, shard, merge. Each does its work and returns the function
that commits it.

torch is imported by the items that need it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from service.contract.ids import place_of
from service.contract.ledger.leases import Lease
from service.contract.ledger.ledger import Ledger
from service.contract.schemas.problems import InternalError
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from service.contract.storage.store import Store
from service.contract.sweeps import cascade_of, sweep_of, value_text
from workers.jobs.items.trained_model import certified_runs, model_of
from workers.jobs.notify_workers import notify_workers
from workers.jobs.redis_retries import retry_on_redis_errors
from workers.jobs.runtime.lease_renewer import LeaseRenewer

__all__ = ["STEPS", "ItemContext"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ItemContext:
    """An item under its lease; ``say`` and ``conclude`` belong to the work loop."""

    store: Store
    settings: Settings
    ledger: Ledger
    submission: JobSubmission
    lease: Lease
    renewer: LeaseRenewer
    say: Callable[..., None]
    conclude: Callable[..., None]


def _prepare(step: ItemContext) -> Callable[[], object]:
    from workers.jobs.items.prepare import facts_of, prepare, shards

    job = step.submission.id

    def stop() -> bool:
        step.say("prepare", 0, message="reading model and data set")
        return step.renewer.should_stop()

    stop()
    found: list[dict[str, Any]] = []
    for run in certified_runs(step.store, step.submission):
        prepare(step.store, step.settings, run, stop=stop)
        step.renewer.check()
        found.append(facts_of(step.store, run.id))
    items = [f"shard:{shard}" for shard in range(sum(len(shards(facts)) for facts in found))]
    digests = " ".join(facts["graph_digest"] for facts in found)
    samples = sum(facts["samples"] for facts in found)

    def commit_prepared() -> None:
        retry_on_redis_errors(
            lambda: step.ledger.commit(step.lease, digests, next_items=items, total=samples)
        )
        retry_on_redis_errors(lambda: notify_workers(step.ledger, job, len(items)))

    return commit_prepared


def _shard(step: ItemContext) -> Callable[[], object]:
    from workers.jobs.items.property_items import verify_shard
    from workers.jobs.items.shard import certify_shard

    item = step.lease.item
    began = time.monotonic()
    run, shard, name = _run_of_shard(step, int(item.partition(":")[2]))

    def progress(rows: int | None, message: str) -> None:
        # Called from inside the bounds, so that a cancelled job stops there.
        step.renewer.check()
        step.say(item, rows, message=f"{name}{message}")

    work = certify_shard if step.submission.vnnlib is None else verify_shard
    done = work(step.store, step.settings, run, shard, progress=progress)
    took = time.monotonic() - began

    def commit_shard() -> None:
        step.say(item, done, message=f"{name}certifying", now=True)
        answer = retry_on_redis_errors(lambda: step.ledger.commit(step.lease, "done"))
        if answer == "committed":
            _count(step, took, done)

    return commit_shard


def _run_of_shard(step: ItemContext, number: int) -> tuple[JobSubmission, int, str]:
    """Of shards that count through all runs: the run, its own number, what messages begin with."""
    from workers.jobs.items.prepare import facts_of, shards

    sweep = sweep_of(step.submission)
    if sweep is None:
        return step.submission, number, ""
    for run in certified_runs(step.store, step.submission):
        own = len(shards(facts_of(step.store, run.id)))
        if number < own:
            place = place_of(run.id)
            assert place is not None
            return run, number, f"{sweep.name} = {value_text(sweep.values[place[1]])}: "
        number -= own
    raise InternalError("this sweep has fewer shards", code="unknown_item")


def _count(step: ItemContext, seconds: float, samples: int) -> None:
    """Count the shard for /metrics; an error is only logged."""
    try:
        step.ledger.totals.add_shard(seconds, samples)
    except redis.RedisError as error:
        logger.info("job %s: shard not counted: %s", step.submission.id, error)


def _merge(step: ItemContext) -> Callable[[], object]:
    from workers.jobs.items.merge import merge, merge_cascade
    from workers.jobs.items.property_items import merge_boxes

    submission = step.submission
    write = merge if submission.vnnlib is None else merge_boxes
    step.say("merge", 0, message="writing the report")
    state = retry_on_redis_errors(lambda: step.ledger.get(submission.id))
    started_at = state.started_at if state else None
    runs = certified_runs(step.store, submission)
    samples = sum(write(step.store, run, started_at=started_at) for run in runs)
    if cascade_of(submission) is not None:
        merge_cascade(step.store, submission, runs)
    several = sweep_of(submission) is not None
    model_id = None if submission.model or several else model_of(step.store, submission).digest
    return lambda: step.conclude(submission, "succeeded", samples=samples, model_id=model_id)


#: Kind of item -> what does it.
STEPS: Mapping[str, Callable[[ItemContext], Callable[[], object]]] = {
    "prepare": _prepare,
    "shard": _shard,
    "merge": _merge,
}
