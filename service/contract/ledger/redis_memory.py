"""Whether Redis answers, has kept its data, and holds every accepted job."""

from __future__ import annotations

from typing import Any

from redis import Redis

from service.contract.ledger.redis_keys import Keys
from service.contract.times import now

__all__ = ["Memory"]


class Memory:
    """``redis`` decodes responses."""

    def __init__(self, redis: Redis, *, prefix: str = "certserve") -> None:
        self._redis: Any = redis
        self._keys = Keys(prefix)

    def ping(self) -> None:
        """Raises redis.exceptions.RedisError unless Redis answers."""
        self._redis.ping()

    def name(self) -> str:
        """A random name that Redis keeps while it keeps its data: a new one means a data loss."""
        key = self._keys.of("memory")
        self._redis.set(key, f"{now()!r}", nx=True)
        return str(self._redis.get(key))

    def set_complete(self, memory: str) -> None:
        """Record that every accepted job has been entered since Redis got this ``memory``."""
        self._redis.set(self._keys.of("complete"), memory)

    def complete(self) -> bool:
        """Whether a job that is unknown here was never accepted; False after a loss of data."""
        memory, entered = self._redis.mget(self._keys.of("memory"), self._keys.of("complete"))
        return memory is not None and memory == entered
