"""How every process of the service connects to Redis."""

from __future__ import annotations

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from redis.retry import Retry

from service.contract.schemas.problems import Unavailable
from service.contract.settings import Settings

__all__ = ["connect"]


def connect(
    settings: Settings, *, retries: int = 2, text: bool = True, timeout_s: float = 30.0
) -> Redis:
    """A client of its own pool; ``text=False`` for RQ, which wants bytes (and its own client).

    Workers pass more ``retries`` (8: about half a minute) and so survive a restart of Redis. The
    API makes few, so that it answers soon. ``timeout_s`` is for callers that can go on without
    Redis. Raises Unavailable where no address is set.
    """
    if settings.redis_url is None:
        raise Unavailable("CERTSERVE_REDIS_URL is not set", code="redis_unavailable")
    return Redis.from_url(
        settings.redis_url,
        decode_responses=text,
        socket_connect_timeout=min(5.0, timeout_s),
        socket_timeout=timeout_s,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=5, base=0.05 if retries <= 2 else 0.25), retries),
        retry_on_error=[ConnectionError, TimeoutError, BusyLoadingError],
    )
