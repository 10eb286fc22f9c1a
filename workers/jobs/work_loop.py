"""What a wake-up job does: lease the next item, do it, commit it, until no item is free.

A wake-up job names one job, but it works on whatever the scheduler
(``service.contract.ledger.scheduler``) names next, and asks it again after every item. So small
jobs overtake large ones, and torch is loaded once for many jobs.

Everything here may run twice, may be killed at any point, and may run beside another worker on the
same job: only the ledger's commit and the creation of ``outcome.json`` count, and both happen once.
An error in the upload ends the job; an error of the service counts as a try of the item.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from collections.abc import Callable

import redis
from rq.timeouts import JobTimeoutException

from service.contract.ledger.connection import connect
from service.contract.ledger.leases import Busy, Exhausted, Lease, NoWork
from service.contract.ledger.ledger import Ledger
from service.contract.ledger.scheduler import Next
from service.contract.logs import configure_logging
from service.contract.outcomes import conclude, give_up
from service.contract.schemas.problems import (
    InternalError,
    InvalidInput,
    Problem,
    StorageFull,
    Unavailable,
)
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from service.contract.storage.store import Store
from workers.jobs.hardware.device_check import DEVICE_LOST
from workers.jobs.hardware.owned_devices import owned_devices
from workers.jobs.items.steps import STEPS, ItemContext
from workers.jobs.items.training_pace import Pace
from workers.jobs.redis_retries import retry_on_redis_errors
from workers.jobs.runtime import held_lease
from workers.jobs.runtime.lease_renewer import ItemStopped, LeaseRenewer

__all__ = ["WorkLoop", "run"]

logger = logging.getLogger(__name__)

#: Seconds before an item is tried again that found the disk full or the store away.
AWAY_S = 5.0
#: Seconds between two progress messages.
PROGRESS_S = 0.5
#: Seconds between two questions whether a smaller job waits.
YIELD_S = 2.0


class ItemRested(ItemStopped):
    """The item is given back and its finished part is kept (a training stops at a checkpoint)."""


def run(job_id: str) -> None:
    """Work on the next items while any are free and the time budget of the wake-up job lasts."""
    # torch takes seconds to import: begin while the inspection child, which needs it too, runs.
    threading.Thread(target=_warm_up, name="warm-up", daemon=True).start()
    settings = Settings()
    configure_logging(settings.log_format)
    store = Store.of(settings)
    ledger = Ledger(connect(settings, retries=8), settings)
    WorkLoop(settings, store, ledger, job_id).work()


def _warm_up() -> None:
    import workers.jobs.items.merge
    import workers.jobs.items.shard  # noqa: F401


class WorkLoop:
    """The work of one wake-up job; ``job_id`` is the job it names, then the one in hand."""

    def __init__(self, settings: Settings, store: Store, ledger: Ledger, job_id: str) -> None:
        self.settings, self.store, self.ledger = settings, store, ledger
        self.job_id = job_id
        self.devices = owned_devices(settings)
        self.worker = f"{platform.node()}:{os.getpid()}"
        self._progress_at = 0.0
        self._asked_at = 0.0
        self.deadline = 0.0
        #: Jobs without work, or whose outcome cannot be written now (a full disk): skipped.
        self._passed_over: set[str] = set()

    def work(self) -> None:
        """Lease, do, commit. Raises redis.RedisError when Redis stays away for minutes."""
        self.deadline = time.monotonic() + self.settings.ticket_budget_s
        with LeaseRenewer(self.ledger, self.settings.lease_ttl_s) as renewer:
            while not renewer.draining and time.monotonic() < self.deadline:
                following = retry_on_redis_errors(self._next)
                if following.job_id is not None:
                    self.job_id = following.job_id
                    self._turn(renewer)
                elif following.soon and following.retry_s is not None:
                    time.sleep(following.retry_s + 0.05)
                else:
                    return

    def _next(self) -> Next:
        return self.ledger.scheduler.next_job(devices=self.devices, passed_over=self._passed_over)

    def _turn(self, renewer: LeaseRenewer) -> None:
        """One item of the job in hand. A job whose outcome cannot be written is skipped."""
        try:
            state = retry_on_redis_errors(lambda: self.ledger.get(self.job_id))
            if state is None or not self._lease(renewer, state.submission):
                self._passed_over.add(self.job_id)
        except (StorageFull, Unavailable, ValueError):
            # A full disk, or a submission that only a later release can read.
            logger.exception("job %s: skipped", self.job_id)
            self._passed_over.add(self.job_id)

    def _lease(self, renewer: LeaseRenewer, submission: JobSubmission) -> bool:
        """Lease and do one item; whether the job may have more."""
        answer = retry_on_redis_errors(lambda: self.ledger.lease(self.job_id, worker=self.worker))
        match answer:
            case Lease():
                self._do(renewer, submission, answer)
            case Exhausted():
                logger.error("job %s: %s exhausted", self.job_id, answer.item)
                retry_on_redis_errors(lambda: give_up(self.store, self.ledger, submission, answer))
            case NoWork(reason=reason):
                if reason == "cancelled":
                    self._conclude(submission, "cancelled")
                return False
            case Busy():
                pass  # another worker was faster
        return True

    def _do(self, renewer: LeaseRenewer, submission: JobSubmission, lease: Lease) -> None:
        """One item under its lease. Only here are unexpected exceptions caught."""
        held_lease.write(lease)
        try:
            with renewer.holding(lease):
                finish = self._item(renewer, submission, lease)
            finish()
        except ItemStopped as stopped:
            logger.info("job %s: %s stopped: %s", self.job_id, lease.item, stopped)
            rested = isinstance(stopped, ItemRested)
            retry_on_redis_errors(
                lambda: self.ledger.release(lease, delay_s=0, counts=False, progressed=rested)
            )
        except JobTimeoutException:
            retry_on_redis_errors(
                lambda: self.ledger.release(
                    lease, error="the time budget of the wake-up job ran out"
                )
            )
            raise
        except redis.RedisError:
            raise
        except (StorageFull, Unavailable) as problem:
            logger.warning("job %s: %s: %s", self.job_id, lease.item, problem)
            text = str(problem)
            self._say(lease.item, None, message=f"waiting: {problem.detail}", now=True)
            # The item is not at fault: it is tried again until there is room or it is cancelled.
            retry_on_redis_errors(
                lambda: self.ledger.release(lease, error=text, delay_s=AWAY_S, counts=False)
            )
        except Problem as problem:
            self._conclude(submission, "failed", problem)
        except Exception as error:
            if type(error).__name__ == "AcceleratorError":  # torch's, which need not be imported
                logger.critical("job %s: the GPU failed", self.job_id, exc_info=error)
                # The worker process gives back the held lease's item, and checks the GPU.
                os._exit(DEVICE_LOST)
            self._fault(submission, lease, error)
        finally:
            held_lease.write(None)

    def _fault(self, submission: JobSubmission, lease: Lease, error: Exception) -> None:
        """An exception with a code states a problem; any other counts as a try of the item.

        A RuntimeError with a code is a soundness error of ours (an attack breaks a certified
        sample, a report contradicts itself): the job fails and is not tried again.
        """
        code = getattr(error, "code", None)
        logger.error("job %s: %s failed", self.job_id, lease.item, exc_info=error)
        text = f"{type(error).__name__}: {error}"
        if isinstance(code, str) and isinstance(error, RuntimeError):
            self._conclude(submission, "failed", InternalError(str(error), code=code))
        elif isinstance(code, str):
            hint, field = getattr(error, "hint", None) or None, getattr(error, "field", None)
            problem: Problem = InvalidInput(str(error), code=code, hint=hint, field=field)
            self._conclude(submission, "failed", problem)
        elif lease.tries >= self.settings.max_attempts:
            problem = InternalError(
                f"{lease.item} failed {lease.tries} times: {text[:1000]}",
                code="internal_error",
                hint="look at the worker's log for the reason, then retry the job",
            )
            self._conclude(submission, "failed", problem)
        else:
            retry_on_redis_errors(lambda: self.ledger.release(lease, error=text))

    def _item(
        self, renewer: LeaseRenewer, submission: JobSubmission, lease: Lease
    ) -> Callable[[], object]:
        """Do the item; the function returned commits it."""
        kind = lease.item.partition(":")[0]
        if kind == "train":
            with renewer.gently():
                return self._training(renewer, submission, lease)
        if kind not in STEPS:
            raise InternalError(
                f"this release does not know the item {lease.item!r}", code="unknown_item"
            )
        step = ItemContext(
            self.store,
            self.settings,
            self.ledger,
            submission,
            lease,
            renewer,
            self._say,
            self._conclude,
        )
        return STEPS[kind](step)

    def _training(
        self, renewer: LeaseRenewer, submission: JobSubmission, lease: Lease
    ) -> Callable[[], object]:
        """Train until the run or the wake-up job's time budget ends; the next one continues."""
        from workers.jobs.items.sweep import train_runs
        from workers.training.loop import Paused

        plan = submission.training
        assert plan is not None
        # Keep the progress of earlier stretches of this run.
        self._say("train", None, message="reading the data set", unit="steps", now=True)
        pace = Pace()
        say = lambda done, total, message: self._say(  # noqa: E731
            *("train", done),
            message=message,
            total=total,
            unit="steps",
            eta_s=pace.eta_s(done, total),
        )
        try:
            digest = train_runs(
                self.store,
                self.settings,
                submission,
                progress=say,
                on_checkpoint=lambda: self._progressed(lease),
                stop=renewer.should_stop,
                should_pause=lambda: (
                    renewer.should_stop()
                    or time.monotonic() > self.deadline
                    or self._somebody_waits()
                ),
            )
        except Paused as paused:
            self._say("train", None, message="waiting: it goes on from its checkpoint", now=True)
            raise ItemRested("the training gives way; its checkpoint is written") from paused
        renewer.check()
        following = ["prepare"] if plan["certify"] else []
        return lambda: retry_on_redis_errors(
            lambda: self.ledger.commit(lease, digest, next_items=following)
        )

    def _progressed(self, lease: Lease) -> None:
        """A checkpoint is written: earlier tries no longer count, so a long run may lose many
        workers."""
        try:
            self.ledger.renew(lease, progressed=True)
        except redis.RedisError as error:
            logger.info("job %s: its earlier tries still count: %s", self.job_id, error)

    def _somebody_waits(self) -> bool:
        """Whether a smaller job waits for a worker; called every step, asks Redis less often."""
        if time.monotonic() - self._asked_at < YIELD_S:
            return False
        self._asked_at = time.monotonic()
        try:
            return self.ledger.scheduler.somebody_waits(self.job_id, devices=self.devices)
        except redis.RedisError as error:
            logger.info("job %s: it is unknown whether a smaller job waits: %s", self.job_id, error)
            return False

    def _say(
        self,
        item: str,
        done: float | None,
        *,
        message: str,
        total: int | None = None,
        unit: str = "",
        eta_s: float | None = None,
        now: bool = False,
    ) -> None:
        """Report progress, at most twice a second; the work goes on without Redis."""
        if not now and time.monotonic() - self._progress_at < PROGRESS_S:
            return
        self._progress_at = time.monotonic()
        try:
            self.ledger.progress(
                self.job_id, item, done, message=message, total=total, unit=unit, eta_s=eta_s
            )
        except redis.RedisError as error:
            logger.info("job %s: progress not sent: %s", self.job_id, error)

    def _conclude(
        self,
        submission: JobSubmission,
        status: str,
        error: Problem | None = None,
        *,
        samples: int = 0,
        model_id: str | None = None,
    ) -> None:
        ended = retry_on_redis_errors(
            lambda: conclude(
                self.store,
                self.ledger,
                submission,
                status,  # type: ignore[arg-type]
                error=error,
                samples=samples,
                model_id=model_id,
            )
        )
        logger.info("job %s %s%s", self.job_id, ended, "" if error is None else f": {error}")
