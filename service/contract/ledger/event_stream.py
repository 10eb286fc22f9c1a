"""Reads the events of jobs: one Redis stream per job, which the ledger's scripts write."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from service.contract.schemas.submissions import TERMINAL

__all__ = ["EventLog", "JobEvent"]

_ID = re.compile(r"(\d{1,20})-(\d{1,20})")
_MOST = 1100


@dataclass(frozen=True)
class JobEvent:
    """``type`` is ``status`` or ``progress``; ``id`` orders the events of a job."""

    id: str
    type: str
    data: dict[str, Any]

    @property
    def order(self) -> tuple[int, int]:
        """What ids are compared by."""
        return EventLog.order(self.id)

    @property
    def last(self) -> bool:
        """Whether the job has ended with this event."""
        return self.type == "status" and self.data["status"] in TERMINAL


class EventLog:
    """The streams of all jobs; ``redis`` decodes responses."""

    def __init__(self, redis: Redis, *, prefix: str = "certserve") -> None:
        self._redis: Any = redis
        self._prefix = prefix

    @staticmethod
    def order(event_id: str) -> tuple[int, int]:
        """An id as numbers; (0, 0), which is before all others, for anything that is no id."""
        match = _ID.fullmatch(event_id)
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def after(self, job_id: str, event_id: str) -> list[JobEvent]:
        """The job's events behind ``event_id``, oldest first. Raises RedisError."""
        milliseconds, number = self.order(event_id)
        start = f"{min(milliseconds, 2**63)}-{min(number, 2**63) + 1}"
        entries = self._redis.xrange(self._key(job_id), min=start, count=_MOST)
        return [_event(event_id, fields) for event_id, fields in entries]

    def newest(self, job_ids: Sequence[str]) -> dict[str, str]:
        """The id of each job's newest event; 0-0 where there is none. Raises RedisError."""
        pipeline = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.xrevrange(self._key(job_id), count=1)
        found = zip(job_ids, pipeline.execute(), strict=True)
        return {job_id: entries[0][0] if entries else "0-0" for job_id, entries in found}

    def read(self, after: Mapping[str, str]) -> dict[str, list[JobEvent]]:
        """New events of several jobs (job -> last id read), in one call. Raises RedisError."""
        streams = {self._key(job_id): event_id for job_id, event_id in after.items()}
        if not streams:
            return {}
        answer = self._redis.xread(streams, count=_MOST) or {}
        pairs = answer.items() if isinstance(answer, dict) else answer
        found: dict[str, list[JobEvent]] = {}
        for key, entries in pairs:
            # Protocol 3 puts the entries into one more list than protocol 2.
            rows = entries[0] if entries and isinstance(entries[0], list) else entries
            job_id = key.split(":")[-2]
            found[job_id] = [_event(event_id, fields) for event_id, fields in rows]
        return found

    def _key(self, job_id: str) -> str:
        return f"{self._prefix}:job:{job_id}:events"


def _event(event_id: str, fields: Mapping[str, str]) -> JobEvent:
    if fields["type"] == "status":
        return JobEvent(event_id, "status", {"status": fields["status"]})
    data: dict[str, Any] = {
        "done": int(float(fields["done"])),
        "total": int(fields["total"]) if fields.get("total") else None,
        "unit": fields.get("unit") or "samples",
        "message": fields.get("message") or "",
        "eta_s": float(fields["eta_s"]) if fields.get("eta_s") else None,
    }
    return JobEvent(event_id, "progress", data)
