"""Redis calls that outlive a restart of Redis."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import redis

__all__ = ["retry_on_redis_errors"]

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

#: How long a worker retries while Redis is away, before it ends its wake-up job.
PATIENCE_S = 300.0


def retry_on_redis_errors(call: Callable[[], Answer]) -> Answer:
    """Repeat a Redis call until it succeeds, for minutes. Results are on disk meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if time.monotonic() > deadline:
                raise
            logger.warning("Redis is away: %s", error)
            time.sleep(1.0)
