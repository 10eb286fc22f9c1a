"""The workers that are alive, with the facts of their last heartbeat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis import Redis

from service.contract.ledger.redis_keys import Keys

__all__ = ["WorkerRegistry"]


class WorkerRegistry:
    """``redis`` decodes responses; after ``ttl_s`` without a heartbeat a worker is dead."""

    def __init__(self, redis: Redis, *, ttl_s: float, prefix: str = "certserve") -> None:
        self._redis: Any = redis
        self._keys = Keys(prefix)
        self._ttl_s = ttl_s

    def heartbeat(self, worker: str, facts: Mapping[str, str]) -> None:
        """Record a heartbeat of ``worker`` with its ``facts`` (host, device, ...) for ``ttl_s``."""
        key = self._keys.of(f"worker:{worker}")
        pipeline = self._redis.pipeline()
        pipeline.hset(key, mapping={"name": worker, **facts})
        pipeline.pexpire(key, int(self._ttl_s * 1000))
        pipeline.sadd(self._keys.of("workers"), worker)
        pipeline.execute()

    def deregister(self, worker: str) -> None:
        """Remove a worker that stops."""
        self._redis.delete(self._keys.of(f"worker:{worker}"))
        self._redis.srem(self._keys.of("workers"), worker)

    def living(self) -> list[dict[str, str]]:
        """The facts of all workers that are alive."""
        names = sorted(self._redis.smembers(self._keys.of("workers")))
        pipeline = self._redis.pipeline(transaction=False)
        for name in names:
            pipeline.hgetall(self._keys.of(f"worker:{name}"))
        found = []
        for name, facts in zip(names, pipeline.execute(), strict=True):
            if facts:
                found.append(dict(facts))
            else:
                self._redis.srem(self._keys.of("workers"), name)
        return found
