"""Kills a work horse that goes on although its lease is gone (job cancelled, deleted, released).

Its own lease renewer stops it first, within two seconds. Code that does not return to Python (a
long call into a library) cannot be stopped in that way; then the worker, which shares nothing with
the work horse but the held lease, kills it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType

import redis

from service.contract.ledger.leases import Lease
from service.contract.ledger.ledger import Ledger
from workers.jobs.runtime import held_lease

__all__ = ["LeaseWatchdog"]

logger = logging.getLogger(__name__)

#: Seconds between two checks, and seconds that a work horse may keep a lost lease: together with
#: the last check they stay below five seconds.
LOOK_S, GRACE_S = 0.5, 3.2


class LeaseWatchdog:
    """Watches one work horse for as long as the ``with`` block lasts.

    ``horse`` gives the pid of the work horse, 0 while there is none; ``note`` is the descriptor of
    its held lease.
    """

    def __init__(self, ledger: Ledger, note: int, horse: Callable[[], int]) -> None:
        self._ledger, self._note, self._horse = ledger, note, horse
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lease-watchdog", daemon=True)

    def __enter__(self) -> LeaseWatchdog:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        gone: Lease | None = None
        since = 0.0
        while not self._ended.wait(LOOK_S):
            held = held_lease.read(self._note)
            try:
                lost = held is not None and not self._ledger.holds(held)
            except redis.RedisError:
                continue  # unknown without Redis; the commit will show it
            if held is None or not lost:
                gone = None
            elif gone != held:
                gone, since = held, time.monotonic()
            elif time.monotonic() - since > GRACE_S:
                self._kill(held)
                return

    def _kill(self, lease: Lease) -> None:
        horse = self._horse()
        if horse <= 0:
            return
        logger.warning(
            "job %s: %s goes on without its lease; work horse %d is killed",
            lease.job_id,
            lease.item,
            horse,
        )
        try:
            os.killpg(horse, signal.SIGKILL)
        except ProcessLookupError:
            logger.info("work horse %d has just ended", horse)
