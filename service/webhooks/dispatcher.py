"""Delivers webhooks: every receiver is notified at least once, also across restarts.

No extra record is written when a job is accepted or ends: the journal says which jobs have a
webhook, the outcome on disk says that a job has ended, and ``webhook.json`` beside it how far the
delivery is. So a job never waits for a receiver, and a pending delivery is found after a crash.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from service.contract.outcomes import outcome_state
from service.contract.schemas.problems import Problem
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from service.contract.storage.files import try_locked
from service.contract.storage.store import Store
from service.contract.times import now
from service.jobs.control import record
from service.webhooks.sending import Answer, Sender

__all__ = ["Webhooks"]

_log = logging.getLogger(__name__)

_TICK_S = 0.5
_LONGEST_PAUSE_S = 6 * 3600.0
#: Deliveries under way at a time.
_AT_ONCE = 16


class Webhooks:
    """``watch`` gets every accepted job; a thread of its own sends."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._watched: dict[str, JobSubmission] = {}
        self._lock = threading.Lock()
        #: Job -> time of its next try.
        self._due: dict[str, float] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Begin to send, where a secret to sign with is configured."""
        if self._settings.webhook_secret is not None:
            self._thread.start()

    def close(self) -> None:
        """Stop; deliveries under way are sent again by the next process."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def watch(self, submission: JobSubmission) -> None:
        """Remember an accepted submission, or a retry of one, if it names a webhook."""
        if submission.webhook is None:
            return
        with self._lock:
            known = self._watched.get(submission.id)
            if known is None or known.attempt < submission.attempt:
                self._watched[submission.id] = submission

    def forget(self, job_id: str) -> None:
        """The job was deleted."""
        with self._lock:
            self._watched.pop(job_id, None)

    def _run(self) -> None:
        with ExitStack() as held:
            lock = self._store.data_dir / "jobs" / ".webhooks.lock"
            # Only one process of a host sends; the others wait for its lock.
            while not held.enter_context(try_locked(lock)):
                if self._stop.wait(_TICK_S):
                    return
            asyncio.run(self._send_until_stopped())

    async def _send_until_stopped(self) -> None:
        sender = Sender(self._settings)
        while not self._stop.is_set():
            with self._lock:
                waiting = list(self._watched.values())
            for submission in waiting:
                if len(self._tasks) >= _AT_ONCE:
                    break
                due = self._due.get(submission.id, 0.0) <= now()
                if due and submission.id not in self._tasks:
                    self._begin(sender, submission)
            await asyncio.sleep(_TICK_S)
        for task in self._tasks.values():
            task.cancel()

    def _begin(self, sender: Sender, submission: JobSubmission) -> None:
        """Send in the background if the job has ended and its delivery is not finished."""
        try:
            state = outcome_state(self._store, submission.id)
            if state is None or state.submission.attempt != submission.attempt:
                return
            progress = self._progress(submission)
            if progress.get("ended"):
                self._done(submission)
                return
            if progress.get("next_at", 0.0) > now():
                self._due[submission.id] = progress["next_at"]
                return
            job = record(state).model_dump(mode="json")
            body = {"type": f"job.{state.status}", "timestamp": state.finished_at, "data": job}
        except (OSError, ValueError, Problem):
            _log.exception("job %s: its webhook could not be prepared", submission.id)
            self._due[submission.id] = now() + 60.0
            return
        task = asyncio.create_task(
            self._deliver(sender, submission, int(progress.get("tries", 0)), json.dumps(body))
        )
        self._tasks[submission.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(submission.id, None))

    async def _deliver(
        self, sender: Sender, submission: JobSubmission, tries: int, body: str
    ) -> None:
        assert submission.webhook is not None
        message_id = f"{submission.id}-{submission.attempt}"
        answer = await sender.send(submission.webhook, message_id, int(now()), body.encode())
        self._note(submission, tries + 1, answer)

    def _note(self, submission: JobSubmission, tries: int, answer: Answer) -> None:
        """Write down how it went, and when to try again. URLs may hold secrets: not logged."""
        host = urlsplit(submission.webhook or "").hostname
        ended = None
        if answer.delivered:
            ended = "delivered"
        elif answer.unwanted or tries >= self._settings.webhook_tries:
            ended = "given_up"
        pause_s = min(self._settings.webhook_pause_s * 4.0 ** (tries - 1), _LONGEST_PAUSE_S)
        progress = {
            "attempt": submission.attempt,
            "tries": tries,
            "last": answer.reason,
            "ended": ended,
            "next_at": None if ended else now() + pause_s,
        }
        _log.log(
            logging.INFO if answer.delivered else logging.WARNING,
            "job %s: webhook to %s, try %d: %s%s",
            submission.id, host, tries, answer.reason, "; given up" if ended == "given_up" else "",
        )  # fmt: skip
        try:
            self._store.write_json(self._path(submission.id), progress)
        except FileNotFoundError:
            ended = "deleted"
        except Problem as problem:
            # After a restart it may be sent twice; the receiver sees the same id.
            _log.warning("job %s: its webhook's state was not written: %s", submission.id, problem)
        if ended:
            self._done(submission)
        else:
            self._due[submission.id] = now() + pause_s

    def _progress(self, submission: JobSubmission) -> dict[str, Any]:
        found = self._store.read_json(self._path(submission.id))
        return found if found and found["attempt"] == submission.attempt else {}

    def _done(self, submission: JobSubmission) -> None:
        self._due.pop(submission.id, None)
        with self._lock:
            if self._watched.get(submission.id) is submission:
                del self._watched[submission.id]

    def _path(self, job_id: str) -> Path:
        return self._store.outcome_path(job_id, attempt=1).with_name("webhook.json")
