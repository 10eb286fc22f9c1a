"""Repairs what was lost: jobs that Redis forgot, missing wake-up jobs, items that kill workers.

Runs in every API process, at the start and every few seconds. Every step is idempotent, so several
processes may run it at the same time.
"""

from __future__ import annotations

import logging
import threading
import time
from itertools import chain, islice

from redis.exceptions import RedisError

from service.contract.ledger.ledger import Ledger, Survey
from service.contract.outcomes import erase, follow, give_up, reopen
from service.contract.schemas.problems import Problem
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from service.contract.storage.journal import JournalReader
from service.contract.storage.store import Store
from service.jobs.idempotency import Repeats
from service.jobs.notifier import Notifier
from service.jobs.report_signer import ReportSigner
from service.jobs.retention import Retention
from service.webhooks.dispatcher import Webhooks

__all__ = ["Reconciler"]

_log = logging.getLogger(__name__)

_BATCH = 500
#: Journal lines that are read in one go, and the pause after them.
_BREATH = 50
_PAUSE_S = 0.002


class Reconciler:
    """``start`` begins the thread; ``tick`` runs one round at once."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        ledger: Ledger,
        notifier: Notifier,
        repeats: Repeats,
        retention: Retention | None = None,
        webhooks: Webhooks | None = None,
        signer: ReportSigner | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._ledger = ledger
        self._notifier = notifier
        self._journal = JournalReader(store.folder("journal"))
        self._retention = retention
        self._webhooks = webhooks or Webhooks(settings, store)
        self._repeats = repeats
        self._signer = signer
        self._swept_at = time.monotonic()
        self._memory: str | None = None
        #: Jobs that could not be entered or erased because the disk was full: tried each round.
        self._left: list[JobSubmission] = []
        self._not_erased: list[str] = []
        self._complete = False
        self._caught_up = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        """Begin; the first round is at once."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the present round."""
        self._stop.set()
        self._thread.join(timeout=10)

    @property
    def caught_up(self) -> bool:
        """Whether every job accepted before this process began is in the ledger."""
        return self._caught_up

    def tick(self) -> None:
        """One round. Raises RedisError while Redis is away; the next round then does the rest."""
        try:
            memory = self._ledger.memory.name()
            if memory != self._memory:
                # This Redis is new to us, or it lost its data: go through everything accepted.
                self._rewind()
                self._schedule_missing()
            self._enter_accepted()
            self._memory = memory
            if not (self._complete or self._left):
                self._ledger.memory.set_complete(memory)
                self._complete = self._caught_up = True
        except (RedisError, Problem):
            self._rewind()
            raise
        self._attend_active()
        due = time.monotonic() - self._swept_at > self._settings.sweep_interval_s
        if self._retention is not None and due:
            self._swept_at = time.monotonic()
            self._store.sweep()
            self._retention.run()

    def _rewind(self) -> None:
        self._journal.rewind()
        self._left, self._not_erased = [], []
        self._memory, self._complete = None, False

    def _enter_accepted(self) -> None:
        left, self._left = self._left, []
        accepted = chain(left, self._journal.read())
        while batch := list(islice(accepted, _BREATH)):
            for submission in batch:
                self._webhooks.watch(submission)
            known = self._ledger.index.known([submission.id for submission in batch])
            for submission, is_known in zip(batch, known, strict=True):
                if not is_known or submission.attempt > 1:
                    self._enter(submission)
            # Requests run in the same interpreter: do not hold it for a thousand lines.
            self._stop.wait(_PAUSE_S)
        for binding in self._journal.take_bindings():
            self._repeats.bind(binding)
        deleted, self._not_erased = [*self._not_erased, *self._journal.take_deletions()], []
        for job_id in deleted:
            self._webhooks.forget(job_id)
            try:
                erase(self._store, self._ledger, job_id)
            except Problem as problem:
                _log.warning("job %s cannot be erased yet: %s", job_id, problem)
                self._not_erased.append(job_id)

    def _enter(self, submission: JobSubmission) -> None:
        try:
            entered = self._entered(submission)
        except Problem as problem:
            _log.warning("job %s cannot be entered yet: %s", submission.id, problem)
            self._left.append(submission)
            return
        if entered:
            _log.info("job %s was accepted but not entered; entered now", submission.id)
            self._notifier.notify(submission.id)

    def _entered(self, submission: JobSubmission) -> bool:
        if submission.attempt > 1:
            return reopen(self._store, self._ledger, submission)
        if follow(self._store, self._ledger, submission.id) != "unknown":
            return False
        return self._ledger.create(submission)

    def _schedule_missing(self) -> None:
        """Schedule the open jobs that an earlier release entered without the scheduler."""
        for job_id in self._ledger.scheduler.missing(self._ledger.index.active()):
            self._ledger.scheduler.add(job_id, time.time())

    def _attend_active(self) -> None:
        # Any wake-up job serves any job: one for every worker is enough.
        workers = self._ledger.worker_registry.living()
        wanted = max(1, len(workers)) - self._notifier.waiting().total()
        owned = max((int(facts.get("devices", 1)) for facts in workers), default=None)
        queued, running = self._ledger.index.open_jobs()
        if self._signer is not None:
            self._signer.attend(queued | running)
        # While there are enough of them, queued jobs need no more; but a training may wait for a
        # larger worker, and has to say so.
        waiting = queued if wanted > 0 else self._ledger.index.queued_trainings()
        active = sorted(running | waiting)
        for start in range(0, len(active), _BATCH):
            batch = active[start : start + _BATCH]
            for job_id, seen in zip(batch, self._ledger.survey(batch), strict=True):
                try:
                    free = self._attend(job_id, seen, owned)
                except Problem as problem:
                    # E.g. a full disk: this job's outcome cannot be written, but others may go on.
                    _log.warning("job %s cannot be reconciled: %s", job_id, problem)
                    continue
                for _ in range(min(free, wanted)):
                    self._notifier.notify(job_id)
                wanted -= min(free, max(0, wanted))

    def _attend(self, job_id: str, seen: Survey, owned: int | None) -> int:
        """Reconcile one job; the number of its items that wait for a worker.

        ``owned``: the most devices that a living worker owns; None where none is alive.
        """
        if self._store.has(self._store.outcome_path(job_id)):
            # Its worker died between the outcome and the ledger.
            follow(self._store, self._ledger, job_id)
            return 0
        if seen.exhausted is not None:
            state = self._ledger.get(job_id)
            if state is not None:
                _log.warning("job %s: %s", job_id, seen.exhausted)
                give_up(self._store, self._ledger, state.submission, seen.exhausted)
            return 0
        enough = owned is None or seen.devices <= owned
        awaits = "" if enough else _waiting_for(seen.devices, owned)
        if awaits != seen.awaits:
            self._ledger.await_devices(job_id, awaits)
        return seen.free if enough else 0

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


def _waiting_for(devices: int, owned: int | None) -> str:
    return f"waiting for a worker with {devices} devices: the largest one has {owned}"
