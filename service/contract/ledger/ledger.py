"""The state of jobs in Redis: items, leases, commits, progress, events, indexes.

Redis dispatches; it is not the record. The journal says what was accepted, ``outcome.json`` says
how a job ended, and everything in Redis can be rebuilt from them. Every change is one Lua script
(see ``lua/``), so that no process sees half of a change.

A job is divided into items. ``prepare`` comes first (of a training, ``train``, then ``prepare``);
its commit names the next items, usually ``shard:0`` ... ``shard:n-1``; when nothing is open any
more, ``merge`` is the last one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from redis import Redis

from service.contract.ledger.counters import Totals
from service.contract.ledger.job_index import Index
from service.contract.ledger.leases import (
    Busy,
    Exhausted,
    JobState,
    Lease,
    NoWork,
    Renewal,
    Survey,
    state_of,
)
from service.contract.ledger.redis_keys import STATUSES, Keys
from service.contract.ledger.redis_memory import Memory
from service.contract.ledger.scheduler import MAX_DELAY_S, Scheduler, scheduling_delay
from service.contract.ledger.worker_registry import WorkerRegistry
from service.contract.schemas.job_records import WAITING
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from service.contract.times import now, seconds

__all__ = [
    "Busy",
    "Exhausted",
    "JobState",
    "Lease",
    "Ledger",
    "NoWork",
    "Renewal",
    "Survey",
]

#: How long the events of a finished job can still be followed.
_EVENTS_KEPT_S = 86_400


class Ledger:
    """Jobs in Redis; ``redis`` is ``connection.connect(settings)`` (it decodes responses)."""

    def __init__(self, redis: Redis, settings: Settings, *, prefix: str = "certserve") -> None:
        self._redis: Any = redis
        self._settings = settings
        self._prefix = prefix
        self._keys = Keys(prefix)
        self.totals = Totals(redis, prefix=prefix)
        #: Which job is served next.
        self.scheduler = Scheduler(redis, prefix=prefix)
        #: Which jobs there are.
        self.index = Index(redis, prefix=prefix)
        #: Whether this Redis has kept its data.
        self.memory = Memory(redis, prefix=prefix)
        #: Which workers are alive.
        self.worker_registry = WorkerRegistry(redis, prefix=prefix, ttl_s=settings.worker_ttl_s)
        folder = Path(__file__).with_name("lua")
        names = ["create", "reopen", "lease", "renew", "commit", "release", "progress", "finish"]
        names += ["forget", "survey", "await_devices"]
        self._scripts: dict[str, Any] = {
            name: self._redis.register_script((folder / f"{name}.lua").read_text())
            for name in names
        }

    # a job's life

    def create(self, submission: JobSubmission) -> bool:
        """Enter a job as queued; True where it was unknown. May be repeated; a deleted job stays
        deleted."""
        keys, arguments = self._entry(submission)
        return bool(self._scripts["create"](keys=keys, args=arguments))

    def create_all(self, submissions: Sequence[JobSubmission]) -> None:
        """The same for several jobs in one round trip."""
        pipeline = self._redis.pipeline(transaction=False)
        for submission in submissions:
            keys, arguments = self._entry(submission)
            self._scripts["create"](keys=keys, args=arguments, client=pipeline)
        pipeline.execute()

    def _entry(self, submission: JobSubmission) -> tuple[list[str], list[str | float]]:
        job, principal = submission.id, submission.principal
        keys = self._keys.job(job)
        keys += [self._keys.of("jobs"), self._keys.of("active"), self._keys.status("queued")]
        keys += [self._keys.of(f"kind:{submission.kind}"), self._keys.of(f"owner:{principal}")]
        keys += [
            self._keys.of(f"open:{principal}"),
            self._keys.of(f"deleted:{job}"),
            self.scheduler.key,
        ]
        key = submission.idempotency_key
        keys.append("" if key is None else self._keys.of(f"idempotency:{key}"))
        keys.append(self._keys.of(f"entering:{principal}"))
        # The time of submission, not now: jobs that are entered again after a loss of data keep
        # their places.
        entered = seconds(submission.created_at)
        arguments: list[str | float] = [
            job,
            submission.kind,
            submission.model_dump_json(),
            _first_item(submission),
            principal,
            submission.attempt,
            submission.fingerprint,
            submission.result_key,
            entered,
            entered + scheduling_delay(submission),
            submission.devices,
        ]
        return keys, arguments

    def reopen(self, submission: JobSubmission) -> bool:
        """Begin a later attempt of a job; whether it is new. Fencing tokens keep increasing."""
        job = submission.id
        keys = self._keys.job(job)
        keys += [self._keys.of("active"), self._keys.of(f"open:{submission.principal}")]
        keys.append(self.scheduler.key)
        keys += [self._keys.status(status) for status in STATUSES]
        arguments: list[str | float] = [job, submission.model_dump_json()]
        arguments += [_first_item(submission), submission.attempt]
        arguments += [entered := now(), entered + scheduling_delay(submission)]
        arguments.append(submission.devices)
        return bool(self._scripts["reopen"](keys=keys, args=arguments))

    def forget(self, job_id: str) -> None:
        """Remove every trace of a job; for an hour it cannot be entered again by mistake."""
        keys = self._keys.job(job_id)
        keys += [self._keys.of("jobs"), self._keys.of("active"), self._keys.of(f"deleted:{job_id}")]
        keys.append(self.scheduler.key)
        self._scripts["forget"](keys=keys, args=[job_id, self._prefix, *STATUSES])

    def lease(self, job_id: str, *, worker: str) -> Lease | Busy | Exhausted | NoWork:
        """The next free item of the job, for ``lease_ttl_s``; the first lease starts the job."""
        keys = self._keys.job(job_id)
        keys += [self._keys.status("queued"), self._keys.status("running")]
        settings = self._settings
        answer = self._scripts["lease"](
            keys=keys, args=[job_id, settings.lease_ttl_s, settings.max_attempts, worker]
        )
        match answer:
            case ["leased", item, token, tries]:
                return Lease(job_id, item, int(token), int(tries))
            case ["busy", wait]:
                return Busy(max(0.0, float(wait)))
            case ["exhausted", item, tries, error]:
                return Exhausted(item, int(tries), error)
            case _:
                return NoWork(answer[0])

    def renew(self, lease: Lease, *, progressed: bool = False) -> Renewal:
        """Keep the lease for another ``lease_ttl_s``; call it about every third of that.

        ``progressed``: a part is saved (a checkpoint), so that earlier tries no longer count.
        """
        valid, cancel = self._scripts["renew"](
            keys=self._keys.job(lease.job_id)[:4],
            args=[lease.item, lease.token, self._settings.lease_ttl_s, int(progressed)],
        )
        return Renewal(bool(valid), bool(cancel))

    def commit(
        self,
        lease: Lease,
        result: str,
        *,
        next_items: Sequence[str] = (),
        total: int | None = None,
        unit: str = "samples",
    ) -> Literal["committed", "duplicate", "finished", "unknown"]:
        """Commit an item whose result is on disk already; the first commit of an item wins.

        ``result`` is a digest or a short text. ``prepare`` passes the shards as ``next_items`` and
        the number of samples as ``total``. ``duplicate``: another worker was first.
        """
        behind = "" if total is None or unit != "samples" else min(MAX_DELAY_S, total)
        answer = self._scripts["commit"](
            keys=[*self._keys.job(lease.job_id), self.scheduler.key],
            args=[
                lease.job_id,
                lease.item,
                lease.token,
                result,
                "" if total is None else total,
                unit,
                behind,
                *next_items,
            ],
        )
        return cast(Literal["committed", "duplicate", "finished", "unknown"], answer)

    def release(
        self,
        lease: Lease,
        *,
        error: str = "",
        delay_s: float | None = None,
        counts: bool = True,
        progressed: bool = False,
    ) -> bool:
        """Give the item back, e.g. after an unexpected exception (``error``); whether the lease
        was still valid.

        ``counts=False`` is for a worker that stops in order: this try does not count.
        ``progressed``: a part is saved (a checkpoint), so that earlier tries no longer count.
        """
        delay = self._settings.retry_delay_s if delay_s is None else delay_s
        mark = "2" if progressed else "0" if counts else "1"
        valid, _ = self._scripts["release"](
            keys=self._keys.job(lease.job_id)[:4],
            args=[lease.item, lease.token, delay, error[:2000], mark],
        )
        return bool(valid)

    def progress(
        self,
        job_id: str,
        item: str,
        done: float | None,
        *,
        total: int | None = None,
        unit: str = "",
        message: str = "",
        eta_s: float | None = None,
    ) -> None:
        """Set how much of ``item`` is done (None: unchanged); the job shows the sum over its items.

        The clock of a job's samples starts with the first number after a None. ``eta_s``: seconds
        to the end, where the job's own rate is no estimate.
        """
        self._scripts["progress"](
            keys=self._keys.job(job_id),
            args=[
                item,
                "" if done is None else done,
                "" if total is None else total,
                unit,
                message[:500],
                "" if eta_s is None else f"{eta_s:.1f}",
            ],
        )

    def finish(
        self,
        job_id: str,
        status: Literal["succeeded", "failed", "cancelled"],
        *,
        error: Mapping[str, Any] | None = None,
        started_at: str | None = None,
        finished_at: str | None = None,
        model_id: str | None = None,
        samples: int = 0,
        attempt: int = 1,
    ) -> str:
        """End the job's ``attempt`` unless it has ended; the status afterwards.

        ``unknown``: there is no such job. ``outcome.json`` comes first: call
        ``service.contract.outcomes.conclude``, not this.
        """
        keys = self._keys.job(job_id)
        keys += [self._keys.of("active"), self._keys.status("queued"), self._keys.status("running")]
        keys += [self._keys.status(status), self.scheduler.key]
        arguments = [
            job_id,
            status,
            "" if error is None else json.dumps(error),
            "" if started_at is None else repr(seconds(started_at)),
            repr(now() if finished_at is None else seconds(finished_at)),
            _EVENTS_KEPT_S,
            model_id or "",
            samples or "",
            attempt,
            self._prefix,
        ]
        return str(self._scripts["finish"](keys=keys, args=arguments))

    # reading

    def get(self, job_id: str) -> JobState | None:
        """The job, or None where the ledger does not know it."""
        fields = self._redis.hgetall(self._keys.of(f"job:{job_id}"))
        return state_of(fields) if fields else None

    def in_line(self, state: JobState) -> JobState:
        """The same, and of a job that waits for just any worker what it waits for."""
        if state.progress.message != WAITING:
            return state
        before = self.scheduler.before(state.submission.id)
        if not self.worker_registry.living():
            why = ": none is running"
        else:
            why = {0: "", 1: ": one job is before it"}.get(before, f": {before} jobs are before it")
        return replace(state, progress=state.progress.model_copy(update={"message": WAITING + why}))

    def results(self, job_id: str) -> dict[str, str]:
        """Committed items of a running job and their results."""
        return dict(self._redis.hgetall(self._keys.of(f"job:{job_id}:done")))

    def holds(self, lease: Lease) -> bool:
        """Whether the lease is still valid; changes nothing."""
        held = self._redis.hget(self._keys.of(f"job:{lease.job_id}:holder"), lease.item)
        return bool(held == str(lease.token))

    def survey(self, job_ids: Sequence[str]) -> list[Survey]:
        """Free, leased and exhausted items of each job, and the devices that they need, in one
        round trip."""
        script = self._scripts["survey"]
        pipeline = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            keys = self._keys.job(job_id)[:4]
            script(keys=keys, args=[self._settings.max_attempts], client=pipeline)
        return [
            Survey(
                status,
                int(free),
                int(leased),
                Exhausted(item, int(tries), error) if item else None,
                int(devices),
                awaits,
            )
            for status, free, leased, item, tries, error, devices, awaits in pipeline.execute()
        ]

    def await_devices(self, job_id: str, message: str) -> None:
        """Let a job say what it waits for, until an item of it is leased; '' takes that back."""
        keys = self._keys.job(job_id)
        self._scripts["await_devices"](keys=[keys[0], keys[6]], args=[message])


def _first_item(submission: JobSubmission) -> str:
    return "train" if submission.kind == "train" else "prepare"
