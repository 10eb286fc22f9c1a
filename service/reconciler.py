"""Mends what was lost: jobs Redis forgot, tickets nobody rang, items that end every worker.

Runs in every API process, at the start and every few seconds; every step is idempotent, so any
number of them at once is safe.
"""

from __future__ import annotations

import logging
import threading
import time
from itertools import islice

from redis.exceptions import RedisError

from service.contract.journal import JournalReader
from service.contract.ledger import Ledger, Survey
from service.contract.outcomes import erase, follow, give_up, reopen
from service.contract.problems import Problem
from service.contract.schemas import JobSubmission
from service.contract.settings import Settings
from service.contract.store import Store
from service.queue import Bell
from service.retention import Retention
from service.webhooks.dispatcher import Webhooks

__all__ = ["Reconciler"]

_log = logging.getLogger(__name__)

_BATCH = 500


class Reconciler:
    """``start`` begins the thread; ``tick`` is one round, for tests and impatient callers."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        ledger: Ledger,
        bell: Bell,
        retention: Retention | None = None,
        webhooks: Webhooks | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._ledger = ledger
        self._bell = bell
        self._journal = JournalReader(store.folder("journal"))
        self._retention = retention
        self._webhooks = webhooks or Webhooks(settings, store)
        self._swept_at = time.monotonic()
        self._memory: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        """Begin; the first round is at once."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the present round."""
        self._stop.set()
        self._thread.join(timeout=10)

    def tick(self) -> None:
        """One round. Raises RedisError while Redis is away; then nothing was skipped."""
        try:
            memory = self._ledger.memory()
            if memory != self._memory:
                # This Redis is new to us, or it lost its data: go through everything accepted.
                self._journal.rewind()
            self._enter_accepted()
            if memory != self._memory:
                self._ledger.set_complete(memory)
            self._memory = memory
        except (RedisError, Problem):
            self._journal.rewind()
            raise
        self._attend_active()
        due = time.monotonic() - self._swept_at > self._settings.sweep_interval_s
        if self._retention is not None and due:
            self._swept_at = time.monotonic()
            self._store.sweep()
            self._retention.run()

    def _enter_accepted(self) -> None:
        accepted = self._journal.read()
        while batch := list(islice(accepted, _BATCH)):
            for submission in batch:
                self._webhooks.watch(submission)
            known = self._ledger.known([submission.id for submission in batch])
            for submission, is_known in zip(batch, known, strict=True):
                if not is_known or submission.attempt > 1:
                    self._enter(submission)
        for job_id in self._journal.take_deletions():
            self._webhooks.forget(job_id)
            erase(self._store, self._ledger, job_id)

    def _enter(self, submission: JobSubmission) -> None:
        if submission.attempt > 1:
            entered = reopen(self._store, self._ledger, submission)
        elif follow(self._store, self._ledger, submission.id) != "unknown":
            return
        else:
            entered = self._ledger.create(submission)
        if entered:
            _log.info("job %s was accepted but not entered; entered now", submission.id)
            self._bell.ring(submission.id)

    def _attend_active(self) -> None:
        waiting = self._bell.waiting()
        # A queued job whose ticket waits needs nothing, however many there are.
        queued, running = self._ledger.open_jobs()
        active = sorted(running | (queued - waiting.keys()))
        if not active:
            return
        workers = max(1, len(self._ledger.workers()))
        for start in range(0, len(active), _BATCH):
            batch = active[start : start + _BATCH]
            for job_id, seen in zip(batch, self._ledger.survey(batch), strict=True):
                self._attend(job_id, seen, waiting[job_id], workers)

    def _attend(self, job_id: str, seen: Survey, waiting: int, workers: int) -> None:
        if self._store.has(self._store.outcome_path(job_id)):
            # Its worker died between the outcome and the ledger.
            follow(self._store, self._ledger, job_id)
            return
        if seen.exhausted is not None:
            state = self._ledger.get(job_id)
            if state is not None:
                _log.warning("job %s: %s", job_id, seen.exhausted)
                give_up(self._store, self._ledger, state.submission, seen.exhausted)
            return
        for _ in range(min(seen.free, workers) - waiting):
            self._bell.ring(job_id)

    def _run(self) -> None:
        while True:
            try:
                self.tick()
            except RedisError as error:
                _log.warning("Redis is away: %s", error)
            except Exception:  # noqa: BLE001 - an outermost loop: the next round may do better
                _log.exception("a round of the reconciler failed")
            if self._stop.wait(self._settings.reconcile_interval_s):
                return
