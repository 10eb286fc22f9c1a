"""Which jobs there are: by state, kind and owner, in the order they came. Only reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from redis import Redis

from service.contract.ledger.leases import JobState, state_of
from service.contract.ledger.redis_keys import STATUSES, Keys

__all__ = ["Index"]


class Index:
    """``redis`` decodes responses."""

    def __init__(self, redis: Redis, *, prefix: str = "certserve") -> None:
        self._redis: Any = redis
        self._keys = Keys(prefix)

    def get_many(self, job_ids: Iterable[str]) -> list[JobState]:
        """Those of the jobs that the ledger knows, in the order given."""
        pipeline = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hgetall(self._keys.of(f"job:{job_id}"))
        return [state_of(fields) for fields in pipeline.execute() if fields]

    def ids(
        self,
        *,
        kind: str | None,
        status: str | None,
        before: str | None,
        limit: int,
        owner: str | None = None,
    ) -> list[str]:
        """Ids of jobs, newest first, older than ``before``; at most ``limit``."""
        # Read the index of the most selective filter; check the others page by page.
        wishes = {"principal": owner, "status": status, "kind": kind}
        asked = {name: value for name, value in wishes.items() if value is not None}
        first = next(iter(asked), None)
        prefix = {"principal": "owner", "status": "status", "kind": "kind", None: ""}[first]
        index = self._keys.of("jobs" if first is None else f"{prefix}:{asked.pop(first)}")
        if not asked:
            return self._page(index, before, limit)
        found: list[str] = []
        while len(found) < limit:
            page = self._page(index, before, 500)
            if not page:
                break
            pipeline = self._redis.pipeline(transaction=False)
            for job_id in page:
                pipeline.hmget(self._keys.of(f"job:{job_id}"), list(asked))
            values = list(asked.values())
            found += [j for j, v in zip(page, pipeline.execute(), strict=True) if v == values]
            before = page[-1]
        return found[:limit]

    def known(self, job_ids: Sequence[str]) -> list[bool]:
        """Whether the ledger knows each of the jobs."""
        pipeline = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.exists(self._keys.of(f"job:{job_id}"))
        return [bool(found) for found in pipeline.execute()]

    def open_jobs(self) -> tuple[set[str], set[str]]:
        """Ids of the queued and of the running jobs."""
        pipeline = self._redis.pipeline()
        for status in ("queued", "running"):
            pipeline.zrange(self._keys.status(status), 0, -1)
        queued, running = pipeline.execute()
        return set(queued), set(running)

    def queued_trainings(self) -> set[str]:
        """Ids of the trainings that no worker has begun."""
        return set(self._redis.zinter([self._keys.status("queued"), self._keys.of("kind:train")]))

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each status."""
        pipeline = self._redis.pipeline()
        for status in STATUSES:
            pipeline.zcard(self._keys.status(status))
        return dict(zip(STATUSES, pipeline.execute(), strict=True))

    def active(self) -> set[str]:
        """Ids of all jobs that have not ended."""
        return set(self._redis.smembers(self._keys.of("active")))

    def _page(self, index: str, before: str | None, limit: int) -> list[str]:
        top = "+" if before is None else f"({before}"
        return list(self._redis.zrevrangebylex(index, top, "-", start=0, num=limit))
