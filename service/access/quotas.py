"""What each key has used, counted in Redis for all API processes together.

Every change is one Lua script (see ``lua/``) and one round trip. All methods raise RedisError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redis import Redis

__all__ = ["Quotas"]

#: A job that was counted but not entered within this time is dropped: its API process died.
_ENTERING_S = 60
_UPLOADS_KEPT_S = 2 * 86_400


class Quotas:
    """``redis`` decodes responses and has a short time-out: a request waits for it."""

    def __init__(self, redis: Redis, *, prefix: str = "certserve") -> None:
        self._redis: Any = redis
        self._prefix = prefix
        folder = Path(__file__).with_name("lua")
        self._take, self._admit, self._grant = (
            redis.register_script((folder / f"{name}.lua").read_text())
            for name in ("take", "admit", "grant")
        )

    def take_requests(
        self, owner: str, *, per_s: float, burst: float, most: int
    ) -> tuple[int, float]:
        """Take up to ``most`` requests from the owner's bucket; if empty: seconds until one."""
        taken, wait_s = self._take(keys=[self._key("rate", owner)], args=[per_s, burst, most])
        return int(taken), float(wait_s)

    def admit_job(self, owner: str, job_id: str, *, most: int) -> bool:
        """Whether the owner may have one more open job; if so, ``job_id`` is counted."""
        keys = [self._key("open", owner), self._key("entering", owner)]
        return bool(self._admit(keys=keys, args=[job_id, most, _ENTERING_S]))

    def drop_job(self, owner: str, job_id: str) -> None:
        """Take back the count of a job that was not accepted."""
        self._redis.zrem(self._key("entering", owner), job_id)

    def grant_bytes(self, owner: str, day: int, *, wish: int, least: int, most: int) -> int | None:
        """Up to ``wish`` bytes that the owner may upload; None where fewer than ``least`` are left.

        ``day`` counts days since the epoch, ``most`` is what the owner may upload in one.
        """
        keys = [self._key("uploaded", f"{owner}:{day}")]
        granted = int(self._grant(keys=keys, args=[wish, least, most, _UPLOADS_KEPT_S]))
        return None if granted < 0 else granted

    def count_bytes(self, owner: str, day: int, count: int) -> None:
        """More (or fewer) bytes than were granted have come."""
        key = self._key("uploaded", f"{owner}:{day}")
        pipeline = self._redis.pipeline()
        pipeline.incrby(key, count)
        pipeline.expire(key, _UPLOADS_KEPT_S)
        pipeline.execute()

    def _key(self, kind: str, name: str) -> str:
        return f"{self._prefix}:{kind}:{name}"
