"""From an accepted submission to a job in the ledger: the journal, then Redis, then the bell.

All submissions that wait are entered in one round trip by one thread, and the event loop is woken
once for all of them: with many clients at a time that is what a submission costs.
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
        self._thread = threading.Thread(target=self._run, name="entrance", daemon=True)
        self._thread.start()

    async def accept(self, submission: JobSubmission) -> None:
        """On disk before this returns, and in the ledger unless Redis is away.

        Raises StorageFull, Unavailable: then the submission was not accepted.
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
        """Enter what waits and stop; the journal is closed by now."""
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
            # Accepted is accepted: the reconciler enters the jobs once Redis is back.
            names = ", ".join(submission.id for submission in submissions)
            _log.warning("%d jobs wait for Redis (%s): %s", len(batch), names, error)
        except Exception:  # noqa: BLE001 - an outermost loop, and the reconciler will try again
            _log.exception("%d jobs could not be entered", len(batch))
        else:
            for submission in submissions:
                self._notifier.notify(submission.id)
        done = [future for _, future in batch]
        with suppress(RuntimeError):  # the loop has ended: nobody waits any more
            done[0].get_loop().call_soon_threadsafe(_succeed, done)


def _succeed(done: list[asyncio.Future[None]]) -> None:
    for future in done:
        if not future.done():  # its request was given up
            future.set_result(None)


def _fail(done: asyncio.Future[None], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
