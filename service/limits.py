"""What one key may use: requests per second, open jobs, bytes uploaded per day.

Without keys, and for admins, nothing is limited here. The rate is counted per API process; open
jobs and bytes are counted in Redis, and while it is away not at all: a promise to accept work
does not hang on it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from service.contract.problems import TooManyRequests
from service.contract.settings import Settings
from service.contract.times import now
from service.keys import Caller

__all__ = ["Limits", "UploadMeter"]

_DAY_S = 86_400


@dataclass
class _Bucket:
    tokens: float
    at: float


@dataclass
class UploadMeter:
    """Counts the bytes of one request as they come; ``left`` is None where nothing is limited."""

    left: int | None
    taken: int = field(default=0)

    def take(self, count: int) -> None:
        """Raises TooManyRequests once the caller's bytes of the day are used up."""
        self.taken += count
        if self.left is not None and self.taken > self.left:
            raise TooManyRequests(
                "this key has uploaded as much as it may in a day",
                retry_after_s=_DAY_S - now() % _DAY_S,
                code="upload_quota",
            )


class Limits:
    """One per process; ``redis`` decodes responses."""

    def __init__(self, redis: Redis, settings: Settings, *, prefix: str = "certserve") -> None:
        self._redis: Any = redis
        self._settings = settings
        self._prefix = prefix
        self._buckets: dict[str, _Bucket] = {}
        self._entering: Counter[str] = Counter()
        self._lock = threading.Lock()
        #: Bytes received by this process, of all callers: for /metrics.
        self.uploaded_bytes = 0

    def count_request(self, caller: Caller) -> None:
        """Raises TooManyRequests where the caller asks faster than it may."""
        if caller.admin:
            return
        rate, moment = self._settings.key_requests_per_s, time.monotonic()
        burst = max(1.0, 2 * rate)
        with self._lock:
            bucket = self._buckets.setdefault(caller.name, _Bucket(burst, moment))
            bucket.tokens = min(burst, bucket.tokens + (moment - bucket.at) * rate)
            bucket.at = moment
            if bucket.tokens < 1:
                raise TooManyRequests(
                    f"this key may ask {rate:g} times a second",
                    retry_after_s=(1 - bucket.tokens) / rate,
                    code="rate_limited",
                )
            bucket.tokens -= 1

    @contextmanager
    def entering_job(self, caller: Caller) -> Iterator[None]:
        """A new job of the caller is accepted inside. Raises TooManyRequests."""
        if caller.admin:
            yield
            return
        with self._lock:
            self._entering[caller.name] += 1
            # Read before Redis is asked: a job entered meanwhile counts twice rather than never.
            entering = self._entering[caller.name]
        try:
            most = self._settings.key_open_jobs
            if self._open_jobs(caller) + entering > most:
                raise TooManyRequests(
                    f"this key has {most} jobs that have not ended",
                    retry_after_s=10,
                    code="too_many_jobs",
                )
            yield
        finally:
            with self._lock:
                self._entering[caller.name] -= 1

    @contextmanager
    def upload(self, caller: Caller, announced: int | None) -> Iterator[UploadMeter]:
        """Bytes of a request are counted inside; ``announced`` is its Content-Length."""
        meter = UploadMeter(None if caller.admin else self._bytes_left(caller))
        if announced is not None and meter.left is not None and announced > meter.left:
            meter.take(announced)  # refused before a byte of it is kept
        try:
            yield meter
        finally:
            with self._lock:
                self.uploaded_bytes += meter.taken
            if not caller.admin and meter.taken:
                self._add_bytes(caller, meter.taken)

    def _open_jobs(self, caller: Caller) -> int:
        try:
            return int(self._redis.scard(f"{self._prefix}:open:{caller.name}"))
        except RedisError:
            return 0

    def _bytes_left(self, caller: Caller) -> int | None:
        try:
            used = int(self._redis.get(self._day(caller)) or 0)
        except RedisError:
            return None
        return max(0, self._settings.key_upload_bytes_per_day - used)

    def _add_bytes(self, caller: Caller, count: int) -> None:
        try:
            pipeline = self._redis.pipeline()
            pipeline.incrby(self._day(caller), count)
            pipeline.expire(self._day(caller), 2 * _DAY_S)
            pipeline.execute()
        except RedisError:
            return  # the bytes of this request are not held against the key

    def _day(self, caller: Caller) -> str:
        return f"{self._prefix}:uploaded:{caller.name}:{int(now() // _DAY_S)}"
