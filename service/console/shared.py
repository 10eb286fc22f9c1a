"""What many viewers want at the same moment: made once, and handed to all of them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import Depends, Request

__all__ = ["Shared", "UsesShared"]

Value = TypeVar("Value")

#: Seconds after which a value is made anew, and how many are kept.
_KEPT_S = 0.5
_MOST = 2000


class Shared:
    """One per process, used from its event loop only.

    Two hundred people who follow one job cost one look and one rendering each time it changes.
    """

    def __init__(self) -> None:
        #: Key -> when it was begun, until when it is kept, the value.
        self._known: dict[Hashable, tuple[float, float, asyncio.Future[Any]]] = {}

    async def get(
        self,
        key: Hashable,
        make: Callable[[], Value],
        *,
        kept_s: float = _KEPT_S,
        since: float = -math.inf,
    ) -> Value:
        """What ``make`` gives, called in a thread, or gave to somebody a moment ago.

        ``since``: a moment of ``time.monotonic`` before which the value must not have been made.
        """
        now = time.monotonic()
        known = self._known.get(key)
        if known is None or known[1] < now or known[0] < since:
            if len(self._known) >= _MOST:
                self._known.clear()
            task = asyncio.ensure_future(to_thread.run_sync(make))
            known = self._known[key] = (now, now + kept_s, task)
        # A viewer who leaves does not take it away from the others.
        value: Value = await asyncio.shield(known[2])
        return value


def _shared(request: Request) -> Shared:
    found = request.app.state.shared
    assert isinstance(found, Shared)
    return found


#: The process' shared values, as an endpoint's parameter.
UsesShared = Annotated[Shared, Depends(_shared)]
