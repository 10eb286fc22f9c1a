"""Sessions of browsers: a random id in a cookie stands for an API key until it ends.

Redis keeps a digest of the id and the key's tag, so that neither ids nor keys can be read there. A
session ends by its age, by logging out, and with its key: whoever revokes a key ends its sessions.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from redis import Redis

from service.access.keys import Caller, KeyRing
from service.access.quotas import Quotas
from service.contract.schemas.problems import TooManyRequests

__all__ = ["Sessions", "new_id"]

#: Tries to log in that an address has at once, and seconds until it has another one.
_TRIES = 10
_PAUSE_S = 6.0


def new_id() -> str:
    """A random id of 256 bits, for a cookie."""
    return secrets.token_urlsafe(32)


class Sessions:
    """``redis`` decodes responses. All methods may raise RedisError; call them from a thread."""

    def __init__(
        self,
        redis: Redis,
        keys: KeyRing,
        quotas: Quotas,
        *,
        lifetime_s: float,
        prefix: str = "certserve",
    ) -> None:
        self._redis: Any = redis
        self._keys = keys
        self._quotas = quotas
        self._lifetime_s = lifetime_s
        self._prefix = prefix

    def begin(self, token: str, *, address: str) -> str | None:
        """The id of a new session for the holder of a key; None where the key is not valid.

        Raises TooManyRequests where ``address`` has tried too often.
        """
        taken, wait_s = self._quotas.take_requests(
            f"login:{address}", per_s=1 / _PAUSE_S, burst=_TRIES, most=1
        )
        if not taken:
            raise TooManyRequests(
                "too many tries to log in from this address",
                retry_after_s=wait_s,
                code="too_many_logins",
                hint=f"wait {max(1, round(wait_s))} s",
            )
        identity = new_id()
        tag = self._keys.tag(token, identity)
        if tag is None:
            return None
        self._redis.set(self._key(identity), tag, px=int(self._lifetime_s * 1000))
        return identity

    def caller(self, identity: str) -> Caller | None:
        """Whose session it is; None where it has ended, or its key is no longer valid."""
        tag = self._redis.get(self._key(identity))
        return None if tag is None else self._keys.holder(str(tag), identity)

    def end(self, identity: str) -> None:
        """End a session at once."""
        self._redis.delete(self._key(identity))

    def _key(self, identity: str) -> str:
        return f"{self._prefix}:session:{hashlib.sha256(identity.encode()).hexdigest()}"
