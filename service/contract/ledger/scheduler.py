"""Which job is served next: small certifications first, and no job waits for ever.

Every open job has a priority time: the moment it was entered plus a delay of one second per sample,
at most ``MAX_DELAY_S``. The job with the earliest priority time is served first. So a small job
overtakes a large one, but only if the large one was entered less than ``MAX_DELAY_S`` earlier.
A training has the largest delay, and gives way between two steps (``somebody_waits``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from service.contract.schemas.submissions import JobSubmission

__all__ = ["MAX_DELAY_S", "Next", "Scheduler", "scheduling_delay"]

#: How much younger a small job may be than a large one that it overtakes.
MAX_DELAY_S = 3600.0
#: A worker waits this long for the next free item before it ends its wake-up job.
SHORT_WAIT_S = 2.0


def scheduling_delay(submission: JobSubmission) -> float:
    """The job's delay in seconds. ``prepare`` corrects it once the samples are counted."""
    if submission.kind != "certify" or submission.dataset is None:
        return MAX_DELAY_S
    if submission.vnnlib is not None:
        return 1.0
    wanted = submission.spec.get("indices") or submission.spec.get("samples")
    counts = [float(count) for count in (submission.dataset.samples,) if count is not None]
    if isinstance(wanted, list):
        counts.append(float(len(wanted)))
    elif isinstance(wanted, int):
        counts.append(float(wanted))
    return min([MAX_DELAY_S, *counts])


@dataclass(frozen=True)
class Next:
    """The job to work on; without one, ``retry_s`` until an item may be free (None: none will)."""

    job_id: str | None
    retry_s: float | None = None

    @property
    def soon(self) -> bool:
        """Whether there is work now, or so soon that a worker stays for it."""
        wait_s = 0.0 if self.job_id is not None else self.retry_s
        return wait_s is not None and wait_s <= SHORT_WAIT_S


class Scheduler:
    """``redis`` decodes responses; the ledger's scripts put jobs in and take them out."""

    def __init__(self, redis: Redis, *, prefix: str = "certserve") -> None:
        self._redis: Any = redis
        self._prefix = prefix
        folder = Path(__file__).with_name("lua")
        self._next: Any = self._redis.register_script((folder / "next.lua").read_text())
        self._waits: Any = self._redis.register_script((folder / "waits.lua").read_text())

    @property
    def key(self) -> str:
        """The sorted set of job ids by priority time."""
        return f"{self._prefix}:line"

    def next_job(self, *, devices: int = 1, passed_over: Collection[str] = ()) -> Next:
        """The first job with a free item that a worker with ``devices`` devices can do.

        It is not reserved: another worker may lease it first.
        """
        job_id, wait = self._next(keys=[self.key], args=[self._prefix, devices, *passed_over])
        if job_id:
            return Next(str(job_id))
        return Next(None, max(0.0, float(wait)) if wait else None)

    def somebody_waits(self, job_id: str, *, devices: int = 1, waited_s: float = 5.0) -> bool:
        """Whether a job before this one, which a worker with ``devices`` devices can do, has
        waited ``waited_s`` seconds and no worker has it.

        For long items: ask at a checkpoint, and where the answer is yes give the item back
        (``ItemStopped``); the worker then takes that job, and comes back to this one after it.
        """
        return bool(self._waits(keys=[self.key], args=[self._prefix, job_id, waited_s, devices]))

    def before(self, job_id: str) -> int:
        """How many open jobs are served before this one, those at work included."""
        return int(self._redis.zrank(self.key, job_id) or 0)

    def missing(self, job_ids: Iterable[str]) -> list[str]:
        """The open jobs without a priority time (entered by an earlier release)."""
        return sorted(set(job_ids) - set(self._redis.zrange(self.key, 0, -1)))

    def add(self, job_id: str, place: float) -> None:
        """Schedule a job that has no priority time."""
        self._redis.zadd(self.key, {job_id: place}, nx=True)
