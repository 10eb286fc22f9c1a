"""Rate limit per key: one token bucket in Redis for all API processes.

A process takes several tokens at once from the bucket (a tenth of a second's worth, which expire
after a second). So most requests need no round trip, and all processes together never admit more
than the bucket holds. While Redis is away each process counts by itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from anyio import to_thread
from redis.exceptions import RedisError

from service.access.quotas import Quotas
from service.contract.schemas.problems import TooManyRequests

__all__ = ["Rates"]

_log = logging.getLogger(__name__)

#: Share of a second's tokens that are taken at once, and how long they stay valid here.
_AT_ONCE_S = 0.1
_KEPT_S = 1.0
#: Seconds without asking Redis after a failure.
_AWAY_S = 5.0


@dataclass
class _Pocket:
    """What this process holds for one key, on the clock of ``time.monotonic``."""

    held: int = 0
    void_at: float = 0.0
    empty_until: float = 0.0
    #: The bucket of this process alone.
    tokens: float = 0.0
    filled_at: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def spend(self, moment: float) -> bool:
        if self.held < 1 or moment > self.void_at:
            return False
        self.held -= 1
        return True


class Rates:
    """One per event loop."""

    def __init__(self, quotas: Quotas, *, per_s: float) -> None:
        self._quotas = quotas
        self._per_s = per_s
        self._burst = max(1.0, 2 * per_s)
        self._pockets: dict[str, _Pocket] = {}
        self._away_until = 0.0

    async def count(self, owner: str) -> None:
        """One request more. Raises TooManyRequests."""
        pocket = self._pockets.setdefault(owner, _Pocket(tokens=self._burst))
        if pocket.spend(self._open(pocket)):
            return
        async with pocket.lock:
            # The holder of the lock before may have taken tokens, or found none.
            if pocket.spend(self._open(pocket)):
                return
            await self._fill(owner, pocket)
            if not pocket.spend(self._open(pocket)):
                raise self._refusal(0.0)

    def _open(self, pocket: _Pocket) -> float:
        """The present time; raises while the bucket is known to be empty."""
        moment = time.monotonic()
        if moment < pocket.empty_until:
            raise self._refusal(pocket.empty_until - moment)
        return moment

    async def _fill(self, owner: str, pocket: _Pocket) -> None:
        if time.monotonic() < self._away_until:
            self._fill_alone(pocket)
            return
        try:
            held, wait_s = await to_thread.run_sync(self._take, owner)
        except RedisError as error:
            _log.warning("requests are counted by this process alone, Redis is away: %s", error)
            self._away_until = time.monotonic() + _AWAY_S
            self._fill_alone(pocket)
        else:
            moment = time.monotonic()
            pocket.held, pocket.void_at = held, moment + _KEPT_S
            pocket.empty_until = moment + wait_s

    def _take(self, owner: str) -> tuple[int, float]:
        most = max(1, int(self._per_s * _AT_ONCE_S))
        return self._quotas.take_requests(owner, per_s=self._per_s, burst=self._burst, most=most)

    def _fill_alone(self, pocket: _Pocket) -> None:
        moment = time.monotonic()
        if pocket.filled_at:
            grown = (moment - pocket.filled_at) * self._per_s
            pocket.tokens = min(self._burst, pocket.tokens + grown)
        pocket.filled_at = moment
        if pocket.tokens < 1:
            pocket.empty_until = moment + (1 - pocket.tokens) / self._per_s
            return
        pocket.tokens -= 1
        pocket.held, pocket.void_at = 1, moment + _KEPT_S

    def _refusal(self, wait_s: float) -> TooManyRequests:
        return TooManyRequests(
            f"this key may make {self._per_s:g} requests per second",
            retry_after_s=wait_s,
            code="rate_limited",
        )
