"""Kills a horse that goes on although its lease is gone (job cancelled, deleted, given away).

A horse is asked first, by its own keeper: that takes two seconds at most. Code that never comes
back to Python between two bytecodes (a long call into a library) does not hear it; then the worker,
which shares nothing with the horse but the lease note, ends it.
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

#: How often the worker looks, and how long a horse may hold on to a lease that is gone: together
#: with the look at the end they stay below five seconds.
LOOK_S, GRACE_S = 0.5, 3.2


class LeaseWatchdog:
    """Watches one horse for as long as the ``with`` block lasts.

    ``horse`` gives the pid of the horse, 0 while there is none; ``note`` is its lease note.
    """

    def __init__(self, ledger: Ledger, note: int, horse: Callable[[], int]) -> None:
        self._ledger, self._note, self._horse = ledger, note, horse
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="warden", daemon=True)

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
                continue  # nobody knows; a commit will tell
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
            "job %s: %s is not let go of; the horse %d is killed", lease.job_id, lease.item, horse
        )
        try:
            os.killpg(horse, signal.SIGKILL)
        except ProcessLookupError:
            logger.info("the horse %d has just ended", horse)
