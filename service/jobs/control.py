"""Use cases of jobs: look up, wait, list, cancel, retry, delete. ``submissions`` accepts them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from anyio import to_thread
from redis.exceptions import RedisError

from service.access.keys import Caller
from service.access.limits import KeyLimits
from service.contract.ids import is_job_id, place_of
from service.contract.ledger.ledger import JobState, Ledger
from service.contract.outcomes import cancel, erase, outcome_state, reopen, rewritten_model
from service.contract.schemas.job_records import (
    Estimate,
    JobDetails,
    JobError,
    JobRecord,
    Progress,
    SweptModel,
)
from service.contract.schemas.problems import Conflict, InvalidInput, NotFound, Unavailable
from service.contract.schemas.submissions import (
    TERMINAL,
    DatasetSource,
    JobSubmission,
    ModelSource,
    Spec,
)
from service.contract.storage.journal import Journal
from service.contract.storage.store import Store
from service.contract.sweeps import cascade_of, sweep_of
from service.contract.times import now
from service.jobs.notifier import Notifier
from service.jobs.sweeps import models_of, run_state

__all__ = ["Jobs", "check_fit", "details", "new_state", "record"]

_log = logging.getLogger(__name__)

_POLL_S = 0.1


def check_fit(spec: Spec, model: ModelSource, dataset: DatasetSource) -> None:
    """Raises InvalidInput where spec, model and data cannot belong together."""
    if model.format == "onnx" and spec.architecture is not None:
        raise InvalidInput(
            "an ONNX file brings its own architecture; leave spec.architecture out",
            code="unexpected_architecture",
            field="spec.architecture",
        )
    if model.format != "onnx" and spec.architecture is None:
        raise InvalidInput(
            "a state dict holds weights only: spec.architecture must say what they belong to",
            code="missing_architecture",
            hint="a name of GET /architectures, or a layer list",
            field="spec.architecture",
        )
    if model.format != "onnx" and (spec.output is not None or spec.binary):
        field = "spec.binary" if spec.binary else "spec.output"
        raise InvalidInput(
            f"{field} says what the output of an ONNX file means; a state dict has none",
            code="unexpected_output",
            hint="leave it out, or send the ONNX file",
            field=field,
        )
    if dataset.samples is not None and spec.indices is not None:
        beyond = [index for index in spec.indices if index >= dataset.samples]
        if beyond:
            raise InvalidInput(
                f"index {beyond[0]} is beyond the {dataset.samples} samples of the data set",
                code="invalid_indices",
                field="spec.indices",
            )


class Jobs:
    """All that endpoints do with jobs; one per process."""

    def __init__(
        self, store: Store, ledger: Ledger, journal: Journal, notifier: Notifier, limits: KeyLimits
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._journal = journal
        self._notifier = notifier
        self._limits = limits

    def visible(self, job_id: str, caller: Caller) -> JobState:
        """The job if it is the caller's, also one training of a sweep. Jobs of others are answered
        like unknown ones."""
        state = self.state(job_id)
        if not caller.sees(state.submission.principal):
            raise _unknown(job_id)
        return state

    def whole(self, job_id: str, caller: Caller) -> JobState:
        """The same, but no training of a sweep: that can only be read. Raises Conflict."""
        state = self.visible(job_id, caller)
        run = place_of(job_id)
        if run is not None:
            raise Conflict(
                "this is one training of a sweep",
                code="part_of_sweep",
                hint=f"do it with the job, {run[0]}",
            )
        return state

    def models(self, state: JobState) -> list[SweptModel] | None:
        """The models of a sweep so far; None for any other job."""
        return models_of(self._store, state)

    def state(self, job_id: str) -> JobState:
        """The job. An outcome on disk wins over Redis. Raises NotFound, RedisError."""
        run = place_of(job_id)
        if run is not None:
            found = run_state(self._store, self.state(run[0]), run[1])
            if found is None:
                raise _unknown(job_id)
            return found
        if not is_job_id(job_id):
            raise _unknown(job_id)
        ended = outcome_state(self._store, job_id)
        if ended is not None:
            return ended
        state = self._ledger.get(job_id)
        if state is None and not self._ledger.memory.complete():
            # Redis lost its data: accepted jobs are about to be entered again.
            raise Unavailable(
                "the jobs are being read back from the journal",
                code="recovering",
                hint="ask again in a few seconds",
            )
        if state is None:
            raise _unknown(job_id)
        return self._ledger.in_line(state)

    async def estimate(self, state: JobState) -> Estimate | None:
        """What the job may cost; None until ``prepare`` has read its model and data."""
        if state.status == "queued" or not state.submission.spec:
            return None
        path = self._store.prepared_dir(state.submission.id) / "facts.json"
        facts = await to_thread.run_sync(self._store.read_json, path)
        told = (facts or {}).get("estimate")
        return None if told is None else Estimate.model_validate(told)

    async def rewritten(self, state: JobState) -> str | None:
        """Id of the model that is certified in place of the uploaded one; None where there is none,
        or not yet."""
        if state.submission.spec.get("summation") != "partial-sums":
            return None
        return await to_thread.run_sync(rewritten_model, self._store, state.submission.id)

    async def certificate(self, state: JobState) -> bool:
        """Whether the job has left a certificate."""
        if state.status != "succeeded" or not state.submission.spec:
            return False
        path = self._store.certificate_path(state.submission.id)
        return await to_thread.run_sync(self._store.has, path)

    async def cancel(self, job_id: str, caller: Caller) -> JobState:
        """End an active job; a job that has ended stays as it is. Raises NotFound, RedisError."""
        return await to_thread.run_sync(self._cancel, job_id, caller)

    def _cancel(self, job_id: str, caller: Caller) -> JobState:
        state = self.whole(job_id, caller)
        if state.status not in TERMINAL:
            try:
                cancel(self._store, self._ledger, state)
            except RedisError as error:
                # The outcome is on disk, and it wins: the reconciler updates Redis.
                _log.warning("job %s is cancelled; Redis is updated later: %s", job_id, error)
            state = self.state(job_id)
            _log.info("job %s: cancellation requested, status %s", job_id, state.status)
        return state

    async def retry(self, job_id: str, caller: Caller) -> JobState:
        """Run a failed or cancelled job again, under its id.

        Raises Conflict, NotFound, TooManyRequests.
        """
        state = await to_thread.run_sync(self.whole, job_id, caller)
        if state.status not in ("failed", "cancelled"):
            raise Conflict(
                f"the job is {state.status}; failed and cancelled jobs can be retried",
                code="not_retryable",
            )
        attempt = state.submission.attempt + 1
        submission = state.submission.model_copy(update={"attempt": attempt})
        async with self._limits.entering_job(caller, job_id):
            await asyncio.wrap_future(self._journal.append(submission, op="retry"))
        try:
            await to_thread.run_sync(reopen, self._store, self._ledger, submission)
        except RedisError as error:
            _log.warning("attempt %d of job %s waits for Redis: %s", attempt, job_id, error)
        else:
            self._notifier.notify(job_id)
        _log.info("job %s: attempt %d", job_id, attempt)
        return new_state(submission)

    async def delete(self, job_id: str, caller: Caller) -> JobState | None:
        """Cancel an active job and return it, or remove one that has ended: then None."""
        state = await to_thread.run_sync(self.whole, job_id, caller)
        if state.status not in TERMINAL:
            return await self.cancel(job_id, caller)
        await asyncio.wrap_future(self._journal.delete(job_id))
        try:
            await to_thread.run_sync(erase, self._store, self._ledger, job_id)
        except RedisError as error:
            _log.warning("job %s is deleted; Redis is updated later: %s", job_id, error)
        _log.info("job %s deleted", job_id)
        return None

    async def wait(self, job_id: str, wait_s: float, caller: Caller) -> JobState:
        """The job once it has ended, or as it is after ``wait_s`` seconds."""
        deadline = now() + wait_s
        while True:
            state = await to_thread.run_sync(self.visible, job_id, caller)
            left = deadline - now()
            if state.status in TERMINAL or left <= 0:
                return state
            await asyncio.sleep(min(_POLL_S, left))

    def page(
        self,
        caller: Caller,
        *,
        kind: str | None,
        statuses: Collection[str],
        cursor: str | None,
        limit: int,
    ) -> tuple[list[JobState], str | None]:
        """Jobs of any of the statuses (none: of all of them), newest first, and the cursor of the
        next page. Raises RedisError."""
        if cursor is not None and not is_job_id(cursor):
            raise InvalidInput(
                "the cursor is not valid: give the next_cursor of an earlier page",
                code="invalid_cursor",
                field="cursor",
            )
        owner = None if caller.admin else caller.name
        ids = self._ledger.index.ids(
            kind=kind, statuses=statuses, owner=owner, before=cursor, limit=limit + 1
        )
        states = self._ledger.index.get_many(ids[:limit])
        return states, ids[limit - 1] if len(ids) > limit else None


def new_state(submission: JobSubmission) -> JobState:
    """The state of a job that was just accepted."""
    return JobState(
        submission=submission,
        status="queued",
        progress=Progress(),
        started_at=None,
        finished_at=None,
        error=None,
        model_id=submission.model.digest if submission.model else None,
    )


def record(state: JobState) -> JobRecord:
    """The job as the API shows it."""
    submission = state.submission
    base = f"/jobs/{submission.id}"
    swept, staged = sweep_of(submission) is not None, cascade_of(submission) is not None
    reported = state.status == "succeeded" and bool(submission.spec)
    run = place_of(submission.id)
    return JobRecord.model_validate(
        {
            "id": submission.id,
            "kind": submission.kind,
            "status": state.status,
            "progress": state.progress,
            "created_at": submission.created_at,
            "started_at": state.started_at,
            "finished_at": state.finished_at,
            "error": None if state.error is None else JobError.model_validate(state.error),
            "model_id": state.model_id,
            "dataset_id": submission.dataset.id if submission.dataset else None,
            "links": {
                "self": base,
                "events": f"{base if run is None else f'/jobs/{run[0]}'}/events",
                "report": f"{base}/report" if reported and not swept else None,
                "model": f"/models/{state.model_id}" if state.model_id else None,
                "training": f"{base}/training" if submission.kind == "train" else None,
                "pareto": f"{base}/pareto" if reported and swept and not staged else None,
                "cascade": f"{base}/cascade" if reported and staged else None,
            },
        }
    )


def details(
    state: JobState,
    estimate: Estimate | None = None,
    models: list[SweptModel] | None = None,
    *,
    certificate: bool = False,
    rewritten: str | None = None,
) -> JobDetails:
    """The same, what was asked for, what it may cost, the models of a sweep, whether there is a
    certificate, and the id of the model that is certified in place of the uploaded one."""
    submission = state.submission
    shown = record(state).model_dump(by_alias=True)
    if certificate:
        shown["links"]["certificate"] = f"/jobs/{submission.id}/certificate"
    if rewritten is not None:
        shown["links"]["rewritten"] = f"/models/{rewritten}/onnx"
    return JobDetails(
        **shown,
        spec=submission.spec or None,
        plan=submission.training,
        estimate=estimate,
        models=models,
    )


def _unknown(job_id: str) -> NotFound:
    return NotFound(f"there is no job {job_id[:64]!r}", code="unknown_job")
