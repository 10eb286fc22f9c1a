"""Renews a lease while an item is worked on, and stops the item when it must stop.

The item runs in the main thread; a second thread renews the lease. Where the lease is lost, the job
is cancelled or the worker is asked to drain (SIGTERM), the main thread is interrupted by a signal
whose handler raises ItemStopped: between two bytecodes, and only while an item is held. An item
that can stop in order (``gently``) is only asked to stop, and interrupted some seconds later.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

import redis

from service.contract.ledger.leases import Lease
from service.contract.ledger.ledger import Ledger

__all__ = ["ItemStopped", "LeaseRenewer"]

logger = logging.getLogger(__name__)

#: Longest time until a cancellation is noticed; leases are renewed as often.
LONGEST_INTERVAL_S = 1.0
#: How long an item that stops in good order may take: less than supervisors wait (15 s).
GENTLE_S = 10.0


class ItemStopped(BaseException):
    """The item in hand must be given back. A BaseException, so that no handler swallows it."""


class LeaseRenewer:
    """A context of the main thread; ``holding`` guards one item."""

    def __init__(self, ledger: Ledger, lease_ttl_s: float) -> None:
        self._ledger = ledger
        self._interval_s = min(LONGEST_INTERVAL_S, lease_ttl_s / 4)
        self._lease: Lease | None = None
        self._stop_reason: str | None = None
        self._ended = threading.Event()
        self._main = threading.main_thread()
        self._thread = threading.Thread(target=self._renew, name="lease-renewer", daemon=True)
        self._gentle = False
        self.draining = False

    def __enter__(self) -> LeaseRenewer:
        if threading.current_thread() is self._main:
            signal.signal(signal.SIGTERM, self._drain)
            signal.signal(signal.SIGUSR1, self._interrupt)
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
        if threading.current_thread() is self._main:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)

    @contextmanager
    def holding(self, lease: Lease) -> Iterator[None]:
        """Renew ``lease`` inside the block; ItemStopped is raised out of it, never after it."""
        self._stop_reason = None
        self._lease = lease
        try:
            self.check()
            yield
        finally:
            self._lease = None

    @contextmanager
    def gently(self) -> Iterator[None]:
        """Inside, SIGTERM interrupts after ``GENTLE_S`` only: ask ``should_stop``, and stop."""
        self._gentle = True
        try:
            yield
        finally:
            self._gentle = False

    def should_stop(self) -> bool:
        """Whether the item in hand is to be given back."""
        return self.draining or self._stop_reason is not None

    def check(self) -> None:
        """Raise ItemStopped if the item in hand is to be given back."""
        if self.should_stop():
            raise ItemStopped(self._stop_reason or "the worker is stopping")

    def _drain(self, signum: int, frame: FrameType | None) -> None:
        self.draining = True
        if self._gentle and self._lease is not None:
            last = threading.Timer(GENTLE_S, self._stop, (self._lease, "the worker is stopping"))
            last.daemon = True
            last.start()
        else:
            self._interrupt(signum, frame)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._lease is not None:
            self.check()

    def _renew(self) -> None:
        while not self._ended.wait(self._interval_s):
            lease = self._lease
            if lease is None or self._stop_reason is not None:
                continue
            try:
                renewal = self._ledger.renew(lease)
            except redis.RedisError as error:
                # Go on: the result will be on disk, and a late commit is accepted.
                logger.warning("lease of %s not renewed: %s", lease.item, error)
                continue
            if renewal.cancel:
                self._stop(lease, "the job is cancelled")
            elif not renewal.valid:
                self._stop(lease, "another worker has the lease")

    def _stop(self, lease: Lease, reason: str) -> None:
        if self._lease is lease:
            self._stop_reason = reason
            if self._main.ident is not None:
                signal.pthread_kill(self._main.ident, signal.SIGUSR1)
