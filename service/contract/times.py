"""One clock for the whole service: UTC, seconds as float inside, RFC 3339 outside."""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["now", "rfc3339", "seconds"]


def now() -> float:
    """Seconds since the epoch. Leases never use it: they use the Redis server's clock."""
    return time.time()


def rfc3339(moment: float) -> str:
    """``moment`` as ``2026-01-31T12:00:00.123456Z``."""
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="microseconds")
    return text.replace("+00:00", "Z")


def seconds(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 text. Raises ValueError."""
    return datetime.fromisoformat(text).timestamp()
