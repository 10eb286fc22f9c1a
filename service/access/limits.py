"""What one key may use: requests per second, open jobs, bytes uploaded per day.

Without keys, and for admins, nothing is limited here. All API processes count together, in Redis.
While Redis is away, requests are counted per process, and open jobs and bytes are not counted, so
that the service still accepts work.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from anyio import to_thread
from redis.exceptions import RedisError

from service.access.keys import Caller
from service.access.quotas import Quotas
from service.access.rate_limits import Rates
from service.contract.schemas.problems import TooManyRequests
from service.contract.settings import Settings
from service.contract.times import now

__all__ = ["KeyLimits", "UploadMeter"]

_log = logging.getLogger(__name__)

_DAY_S = 86_400
#: Bytes that an upload of unknown length is granted at a time.
_STEP = 16 * 1024 * 1024


class UploadMeter:
    """Counts the bytes of one request as they arrive, against the bytes granted before."""

    def __init__(self, quotas: Quotas, owner: str, most: int | None) -> None:
        self._quotas = quotas
        self._owner = owner
        self._most = most
        self._known = True
        self._day = int(now() // _DAY_S)
        self._granted = 0
        self.taken = 0

    def announce(self, count: int) -> None:
        """Announce the size of the request. Raises TooManyRequests before any byte is kept."""
        self._grant(count, count)

    def take(self, count: int) -> None:
        """Raises TooManyRequests once the owner's bytes of the day are used up. May ask Redis."""
        self.taken += count
        missing = self.taken - self._granted
        if missing > 0:
            self._grant(max(missing, _STEP), missing)

    def settle(self) -> None:
        """End the request: give back the bytes that were granted and did not arrive."""
        difference = self.taken - self._granted
        if self._most is None or difference == 0:
            return
        try:
            self._quotas.count_bytes(self._owner, self._day, difference)
        except RedisError as error:
            _log.info("%d bytes are not counted: %s", difference, error)

    def _grant(self, wish: int, least: int) -> None:
        if self._most is None or not self._known or least == 0:
            return
        try:
            granted = self._quotas.grant_bytes(
                self._owner, self._day, wish=wish, least=least, most=self._most
            )
        except RedisError as error:
            _log.info("this upload is not limited: %s", error)
            self._known = False
            return
        if granted is None:
            raise TooManyRequests(
                "this key has reached its upload quota for today (UTC)",
                retry_after_s=_DAY_S - now() % _DAY_S,
                code="upload_quota",
            )
        self._granted += granted


class KeyLimits:
    """One per process; ``quotas`` may be asked from any thread."""

    def __init__(self, quotas: Quotas, settings: Settings) -> None:
        self._quotas = quotas
        self._settings = settings
        self._rates = Rates(quotas, per_s=settings.key_requests_per_s)
        self._lock = threading.Lock()
        #: Bytes received by this process, of all callers: for /metrics.
        self.uploaded_bytes = 0

    async def count_request(self, caller: Caller) -> None:
        """Raises TooManyRequests where the caller is over its request rate."""
        if not caller.admin:
            await self._rates.count(caller.name)

    @asynccontextmanager
    async def entering_job(self, caller: Caller, job_id: str) -> AsyncIterator[None]:
        """A new job of the caller is accepted inside. Raises TooManyRequests."""
        if caller.admin:
            yield
            return
        most = self._settings.key_open_jobs
        if not await to_thread.run_sync(self._admit, caller, job_id, most):
            raise TooManyRequests(
                f"this key has {most} jobs that have not ended",
                retry_after_s=10,
                code="too_many_jobs",
            )
        try:
            yield
        except Exception:
            # Not on cancellation: the job of a cancelled request may be journalled already.
            await to_thread.run_sync(self._drop, caller, job_id)
            raise

    @contextmanager
    def upload(self, caller: Caller, announced: int | None) -> Iterator[UploadMeter]:
        """Bytes of a request are counted inside; ``announced`` is its Content-Length."""
        most = None if caller.admin else self._settings.key_upload_bytes_per_day
        meter = UploadMeter(self._quotas, caller.name, most)
        try:
            meter.announce(announced or 0)
            yield meter
        finally:
            with self._lock:
                self.uploaded_bytes += meter.taken
            meter.settle()

    def _admit(self, caller: Caller, job_id: str, most: int) -> bool:
        try:
            return self._quotas.admit_job(caller.name, job_id, most=most)
        except RedisError as error:
            _log.info("job %s is not counted: %s", job_id, error)
            return True

    def _drop(self, caller: Caller, job_id: str) -> None:
        try:
            self._quotas.drop_job(caller.name, job_id)
        except RedisError as error:
            _log.info("job %s was refused but counts as open for another minute: %s", job_id, error)
