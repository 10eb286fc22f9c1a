"""From an accepted submission to a job in the ledger: the journal, then Redis, then the notifier.

One thread enters all waiting submissions into Redis in one round trip, and wakes the event loop
once for all of them. This keeps a submission cheap when many clients submit at the same time.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from concurrent.futures import Future
from contextlib import suppress

from redis.exceptions import RedisError

from service.contract.ledger.ledger import Ledger
from service.contract.schemas.submissions import JobSubmission
from service.contract.storage.journal import Journal
from service.jobs.notifier import Notifier

__all__ = ["Intake"]

_log = logging.getLogger(__name__)

_AT_ONCE = 500

_Waiting = tuple[JobSubmission, "asyncio.Future[None]"]


class Intake:
    """One per process; all callers share one event loop."""

    def __init__(self, journal: Journal, ledger: Ledger, notifier: Notifier) -> None:
        self._journal = journal
        self._ledger = ledger
        self._notifier = notifier
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._thread.start()

    async def accept(self, submission: JobSubmission) -> None:
        """Write the submission to disk, then enter it into the ledger unless Redis is away.

        It is on disk when this returns. Raises StorageFull, Unavailable: then it was not accepted.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def journalled(written: Future[None]) -> None:
            error = written.exception()
            if error is None:
                self._waiting.put((submission, done))
            else:
                loop.call_soon_threadsafe(_fail, done, error)

        self._journal.append(submission).add_done_callback(journalled)
        await done

    def close(self) -> None:
        """Enter the waiting submissions and stop. Close the journal first."""
        self._waiting.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        stop = False
        while not stop:
            batch = [self._waiting.get()]
            while len(batch) < _AT_ONCE and not self._waiting.empty():
                batch.append(self._waiting.get())
            stop = None in batch
            self._enter([entry for entry in batch if entry is not None])

    def _enter(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        submissions = [submission for submission, _ in batch]
        try:
            self._ledger.create_all(submissions)
        except RedisError as error:
            # They are in the journal: the reconciler enters them once Redis is back.
            names = ", ".join(submission.id for submission in submissions)
            _log.warning("%d jobs wait for Redis (%s): %s", len(batch), names, error)
        except Exception:  # noqa: BLE001 - an outermost loop, and the reconciler will try again
            _log.exception("%d jobs could not be entered", len(batch))
        else:
            for submission in submissions:
                self._notifier.notify(submission.id)
        done = [future for _, future in batch]
        with suppress(RuntimeError):  # the event loop has ended: no request waits
            done[0].get_loop().call_soon_threadsafe(_succeed, done)


def _succeed(done: list[asyncio.Future[None]]) -> None:
    for future in done:
        if not future.done():  # the request was cancelled
            future.set_result(None)


def _fail(done: asyncio.Future[None], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
