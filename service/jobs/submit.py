"""Accepting jobs: find an equal earlier submission, else journal a new one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anyio import to_thread
from redis.exceptions import RedisError

from service.access.keys import Caller
from service.access.limits import KeyLimits
from service.contract.ids import new_job_id
from service.contract.ledger.leases import JobState
from service.contract.outcomes import outcome_state, trained_models
from service.contract.schemas.problems import Conflict, InvalidInput, NotFound, Unavailable
from service.contract.schemas.submissions import DatasetSource, JobSubmission, ModelSource, Spec
from service.contract.schemas.training_plans import TrainingPlan
from service.contract.storage.journal import Binding, Journal
from service.contract.storage.store import Store
from service.contract.sweeps import runs_of, sweep_of
from service.contract.times import now, rfc3339
from service.contract.version import engine_version
from service.jobs.control import Jobs, new_state
from service.jobs.idempotency import Repeats, fingerprint, key_of, result_key
from service.jobs.intake import Intake

__all__ = ["Accepted", "PreparedSubmission", "SubmissionRequest", "Submissions"]

_log = logging.getLogger(__name__)

#: How long a second request waits for the first one with the same Idempotency-Key.
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class SubmissionRequest:
    """What a caller submits. ``force``: compute even where an equal result exists."""

    kind: Literal["certify", "train"]
    spec: Spec | None
    model: ModelSource | None
    dataset: DatasetSource | None
    caller: Caller
    idempotency_key: str | None = None
    force: bool = False
    training: TrainingPlan | None = None
    training_dataset: DatasetSource | None = None
    webhook: str | None = None


@dataclass(frozen=True)
class PreparedSubmission:
    """A checked request: the submission to journal, and a finished job with the same result."""

    caller: Caller
    submission: JobSubmission
    earlier: JobState | None


@dataclass(frozen=True)
class Accepted:
    """The job that answers: ``new``, ``replayed`` (same Idempotency-Key) or ``reused`` (result)."""

    state: JobState
    how: Literal["new", "replayed", "reused"]


class Submissions:
    """One per process."""

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        intake: Intake,
        jobs: Jobs,
        repeats: Repeats,
        limits: KeyLimits,
        reuse: bool,
        caught_up: Callable[[], bool],
    ) -> None:
        self._store = store
        self._journal = journal
        self._intake = intake
        self._jobs = jobs
        self._repeats = repeats
        self._limits = limits
        self._reuse = reuse
        self._caught_up = caught_up

    def prepare(self, submission_request: SubmissionRequest) -> PreparedSubmission:
        """Build the submission and look for an equal result. Blocks: call it from a thread.

        Raises InvalidInput where the idempotency key is malformed.
        """
        submission = self._submission(submission_request)
        earlier = None if submission_request.force else self._earlier(submission)
        return PreparedSubmission(submission_request.caller, submission, earlier)

    async def submit(self, prepared: PreparedSubmission) -> Accepted:
        """Accept a prepared submission: a new job on disk, or the earlier job that answers it.

        Raises StorageFull, Unavailable, Conflict (the key was used for something else),
        TooManyRequests.
        """
        submission, earlier = prepared.submission, prepared.earlier
        key = submission.idempotency_key
        if key is not None:
            replayed = await self._replayed(key, submission)
            if replayed is not None:
                return Accepted(replayed, "replayed")
        try:
            if earlier is not None:
                if key is not None:
                    binding = Binding(key, earlier.submission.id, submission.fingerprint)
                    await asyncio.wrap_future(self._journal.bind(binding))
                    await to_thread.run_sync(self._repeats.bind, binding)
                return Accepted(earlier, "reused")
            async with self._limits.entering_job(prepared.caller, submission.id):
                await self._intake.accept(submission)
        except Exception:
            # Not on cancellation: the job of a cancelled request may be in the journal already.
            if key is not None:
                await self._release(key)
            raise
        return Accepted(new_state(submission), "new")

    def _submission(self, submission_request: SubmissionRequest) -> JobSubmission:
        spec = {} if submission_request.spec is None else submission_request.spec.normal()
        training = (
            None if submission_request.training is None else submission_request.training.normal()
        )
        content = fingerprint(
            submission_request.kind,
            spec,
            submission_request.model,
            submission_request.dataset,
            training,
            submission_request.training_dataset,
        )
        owner = submission_request.caller.name
        # A result under a clock depends on the machine, so it is never reused.
        clocks = (spec.get("time_budget_s"), spec.get("sample_time_s"))
        repeatable = self._reuse and clocks == (None, None)
        datasets = (submission_request.dataset, submission_request.training_dataset)
        return JobSubmission(
            id=new_job_id(),
            kind=submission_request.kind,
            spec=spec,
            model=submission_request.model,
            dataset=submission_request.dataset,
            training=training,
            training_dataset=submission_request.training_dataset,
            created_at=rfc3339(now()),
            principal=owner,
            fingerprint=content,
            idempotency_key=_checked_key(owner, submission_request.idempotency_key),
            result_key=result_key(owner, content, datasets, engine_version()) if repeatable else "",
            webhook=submission_request.webhook,
        )

    async def _replayed(self, key: str, submission: JobSubmission) -> JobState | None:
        """The job that the key was used for; None where the key now belongs to this submission."""
        deadline = now() + _PATIENCE_S
        # A process may have died between the journal and Redis, and its reservation may be void.
        while not self._caught_up():
            if now() > deadline:
                raise Unavailable(
                    "the service is still reading its journal",
                    code="recovering",
                    hint="send the request again in a few seconds",
                )
            await asyncio.sleep(0.02)
        while True:
            known = await to_thread.run_sync(
                self._repeats.reserve, key, submission.id, submission.fingerprint
            )
            if known is None:
                return None
            if known.fingerprint != submission.fingerprint:
                raise Conflict(
                    "this Idempotency-Key was used for another submission",
                    code="idempotency_conflict",
                    hint="send a new submission with a new key",
                    field="Idempotency-Key",
                )
            try:
                return await to_thread.run_sync(self._jobs.state, known.job_id)
            except NotFound:
                if now() > deadline:
                    raise Unavailable(
                        "the first submission with this Idempotency-Key is still being accepted",
                        code="submission_in_progress",
                        hint="send the request again in a few seconds",
                    ) from None
            await asyncio.sleep(0.05)

    def _earlier(self, submission: JobSubmission) -> JobState | None:
        """An equal job that succeeded and whose files still exist."""
        if not submission.result_key:
            return None
        try:
            job_id = self._repeats.result(submission.result_key)
        except RedisError:
            return None  # computed again: it costs time, nothing else
        state = None if job_id is None else outcome_state(self._store, job_id)
        if state is None or state.status != "succeeded":
            return None
        return state if all(map(self._store.has, self._left_by(state))) else None

    def _left_by(self, state: JobState) -> list[Path]:
        """The files that make up a job's result: the report if one was asked for, and the model; of
        a sweep those of every value that has a model."""
        submission = state.submission
        if sweep_of(submission) is None:
            models = [state.model_id if submission.kind == "train" else None]
        else:
            models = trained_models(self._store, submission)
        files = []
        for run, model in zip(runs_of(submission), models, strict=True):
            if submission.spec and (model is not None or len(models) == 1):
                files.append(self._store.report_path(run.id))
            if model is not None:
                files.append(self._store.blob_path(model))
        return files

    async def _release(self, key: str) -> None:
        try:
            await to_thread.run_sync(self._repeats.release, key)
        except RedisError as error:
            _log.info("an idempotency key was not released and expires by itself: %s", error)


def _checked_key(principal: str, header: str | None) -> str | None:
    if header is None:
        return None
    if not (1 <= len(header) <= 255 and header.isprintable()):
        raise InvalidInput(
            "an Idempotency-Key has 1 to 255 printable characters",
            code="invalid_idempotency_key",
            field="Idempotency-Key",
        )
    return key_of(principal, header)
