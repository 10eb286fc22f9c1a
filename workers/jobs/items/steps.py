"""The items of a certification: prepare, shard, merge. Each does its work and returns the function
that commits it.

torch is imported by the items that need it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import redis

from service.contract.ledger.leases import Lease
from service.contract.ledger.ledger import Ledger
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from service.contract.storage.store import Store
from workers.jobs.items.trained_model import model_of
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
    prepare(step.store, step.settings, step.submission, stop=stop)
    step.renewer.check()
    facts = facts_of(step.store, job)
    items = [f"shard:{shard}" for shard in range(len(shards(facts)))]

    def commit_prepared() -> None:
        retry_on_redis_errors(
            lambda: step.ledger.commit(
                step.lease, facts["graph_digest"], next_items=items, total=facts["samples"]
            )
        )
        retry_on_redis_errors(lambda: notify_workers(step.ledger, job, len(items)))

    return commit_prepared


def _shard(step: ItemContext) -> Callable[[], object]:
    from workers.jobs.items.property_items import verify_shard
    from workers.jobs.items.shard import certify_shard

    item = step.lease.item
    began = time.monotonic()

    def progress(rows: int, message: str) -> None:
        # Called from inside the bounds, so that a cancelled job stops there.
        step.renewer.check()
        step.say(item, rows, message=message)

    work = certify_shard if step.submission.vnnlib is None else verify_shard
    done = work(
        step.store,
        step.settings,
        step.submission,
        int(item.partition(":")[2]),
        progress=progress,
    )
    took = time.monotonic() - began

    def commit_shard() -> None:
        step.say(item, done, message="certifying", now=True)
        answer = retry_on_redis_errors(lambda: step.ledger.commit(step.lease, "done"))
        if answer == "committed":
            _count(step, took, done)

    return commit_shard


def _count(step: ItemContext, seconds: float, samples: int) -> None:
    """Count the shard for /metrics; an error is only logged."""
    try:
        step.ledger.totals.add_shard(seconds, samples)
    except redis.RedisError as error:
        logger.info("job %s: shard not counted: %s", step.submission.id, error)


def _merge(step: ItemContext) -> Callable[[], object]:
    from workers.jobs.items.merge import merge
    from workers.jobs.items.property_items import merge_boxes

    submission = step.submission
    write = merge if submission.vnnlib is None else merge_boxes
    step.say("merge", 0, message="writing the report")
    state = retry_on_redis_errors(lambda: step.ledger.get(submission.id))
    started_at = state.started_at if state else None
    samples = write(step.store, submission, started_at=started_at)
    model_id = None if submission.model else model_of(step.store, submission).digest
    return lambda: step.conclude(submission, "succeeded", samples=samples, model_id=model_id)


#: Kind of item -> what does it.
STEPS: Mapping[str, Callable[[ItemContext], Callable[[], object]]] = {
    "prepare": _prepare,
    "shard": _shard,
    "merge": _merge,
}
