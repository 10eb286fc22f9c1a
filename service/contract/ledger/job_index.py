"""Which jobs there are: by state, kind and owner, in the order they came. Only reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import chain
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
        before: str | None,
        limit: int,
        kind: str | None = None,
        statuses: Collection[str] = (),
        owner: str | None = None,
    ) -> list[str]:
        """Ids of jobs, newest first, older than ``before``; at most ``limit``.

        ``statuses``: those that are asked for; none means all of them.
        """
        # Read the index of the most selective filter; check the others page by page.
        if owner is not None:
            indexes = [self._keys.of(f"owner:{owner}")]
        elif statuses:
            indexes = [self._keys.status(status) for status in sorted({*statuses})]
        else:
            indexes = [self._keys.of("jobs" if kind is None else f"kind:{kind}")]
        wanted = {} if kind is None else {"kind": {kind}}
        wanted |= {"status": {*statuses}} if statuses else {}
        if owner is None:
            wanted.pop("status" if statuses else "kind", None)
        if not wanted:
            return self._page(indexes, before, limit)
        found: list[str] = []
        size = 2 * limit
        while len(found) < limit:
            page = self._page(indexes, before, min(2000, max(100, size)))
            size *= 2
            if not page:
                break
            pipeline = self._redis.pipeline(transaction=False)
            for job_id in page:
                pipeline.hmget(self._keys.of(f"job:{job_id}"), list(wanted))
            found += [
                job_id
                for job_id, values in zip(page, pipeline.execute(), strict=True)
                if all(v in some for v, some in zip(values, wanted.values(), strict=True))
            ]
            before = page[-1]
        return found[:limit]

    def counts_of(self, *, kind: str | None = None, owner: str | None = None) -> dict[str, int]:
        """How many jobs of this kind and owner there are in each status."""
        asked = {"kind": kind, "owner": owner}
        others = [self._keys.of(f"{n}:{value}") for n, value in asked.items() if value is not None]
        if not others:
            return self.counts()
        pipeline = self._redis.pipeline(transaction=False)
        for status in STATUSES:
            pipeline.zinter([self._keys.status(status), *others])
        return dict(zip(STATUSES, map(len, pipeline.execute()), strict=True))

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

    def _page(self, indexes: Sequence[str], before: str | None, limit: int) -> list[str]:
        top = "+" if before is None else f"({before}"
        pipeline = self._redis.pipeline(transaction=False)
        for index in indexes:
            pipeline.zrevrangebylex(index, top, "-", start=0, num=limit)
        # Of each index the newest ones: among them are the newest of all.
        return sorted({*chain.from_iterable(pipeline.execute())}, reverse=True)[:limit]
