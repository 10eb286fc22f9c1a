"""Counters of the work of all workers together, in Redis, for /metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis import Redis

from service.contract.times import now

__all__ = ["BUCKETS_S", "Totals", "WorkDone"]

#: Upper ends of the histogram of shard seconds; beyond the last one is +Inf.
BUCKETS_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
_MINUTE_S = 60


@dataclass(frozen=True)
class WorkDone:
    """Shards by bucket (not cumulated), their seconds and samples, samples of the last minute."""

    buckets: dict[str, int]
    seconds: float
    samples: int
    recent_samples: int


class Totals:
    """``redis`` decodes responses."""

    def __init__(self, redis: Redis, *, prefix: str = "certserve") -> None:
        self._redis: Any = redis
        self._prefix = prefix

    def add_shard(self, seconds: float, samples: int) -> None:
        """Count a shard that was computed. Raises RedisError."""
        bucket = next((str(end) for end in BUCKETS_S if seconds <= end), "+Inf")
        minute = f"{self._prefix}:totals:{int(now() // _MINUTE_S)}"
        pipeline = self._redis.pipeline()
        pipeline.hincrby(f"{self._prefix}:totals", f"bucket:{bucket}", 1)
        pipeline.hincrbyfloat(f"{self._prefix}:totals", "seconds", seconds)
        pipeline.hincrby(f"{self._prefix}:totals", "samples", samples)
        pipeline.incrby(minute, samples)
        pipeline.expire(minute, 5 * _MINUTE_S)
        pipeline.execute()

    def read(self) -> WorkDone:
        """The totals so far. Raises RedisError."""
        this_minute = int(now() // _MINUTE_S)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hgetall(f"{self._prefix}:totals")
        pipeline.mget(f"{self._prefix}:totals:{this_minute - back}" for back in (0, 1))
        fields, (current, before) = pipeline.execute()
        # The part of the minute before that belongs to the last 60 seconds.
        share = 1.0 - (now() % _MINUTE_S) / _MINUTE_S
        names = [*(str(end) for end in BUCKETS_S), "+Inf"]
        return WorkDone(
            buckets={name: int(fields.get(f"bucket:{name}", 0)) for name in names},
            seconds=float(fields.get("seconds", 0.0)),
            samples=int(fields.get("samples", 0)),
            recent_samples=int(int(current or 0) + share * int(before or 0)),
        )
