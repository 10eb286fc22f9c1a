"""How a job ends: ``outcome.json`` is created on disk, once; then the ledger is updated."""

from __future__ import annotations

from typing import Any, Literal

from service.contract.ledger.ledger import Exhausted, JobState, Ledger
from service.contract.schemas.job_records import Progress
from service.contract.schemas.problems import InternalError, Problem
from service.contract.schemas.submissions import JobSubmission
from service.contract.storage.store import Store
from service.contract.sweeps import runs_of, sweep_of
from service.contract.times import now, rfc3339

__all__ = [
    "cancel",
    "conclude",
    "erase",
    "follow",
    "give_up",
    "outcome_state",
    "reopen",
    "rewritten_model",
    "trained_model",
    "trained_models",
]

#: Code of a job that failed because workers died in one of its items too often.
EXHAUSTED = "attempts_exhausted"


def conclude(
    store: Store,
    ledger: Ledger,
    submission: JobSubmission,
    status: Literal["succeeded", "failed", "cancelled"],
    *,
    error: Problem | None = None,
    started_at: str | None = None,
    samples: int = 0,
    model_id: str | None = None,
) -> str:
    """End a job and return the status it ended with, which may be an earlier caller's.

    For ``succeeded`` everything the job leaves (report, samples) must be on disk. ``started_at``
    and ``samples`` (how many were done) are for the record.
    """
    if started_at is None:
        state = ledger.get(submission.id)
        started_at = state.started_at if state else None
    outcome = {
        "submission": submission.model_dump(mode="json"),
        "status": status,
        "error": None if error is None else error.to_dict(),
        "started_at": started_at,
        "finished_at": rfc3339(now()),
        "samples": samples,
        "model_id": model_id,
    }
    if model_id is None:
        outcome["model_id"] = trained_model(store, submission)
    store.job_dir(submission.id)
    # A late worker of an earlier attempt finds that attempt's outcome, and changes nothing.
    path = store.outcome_path(submission.id, attempt=submission.attempt)
    store.create_json(path, outcome)
    return follow(store, ledger, submission.id)


def trained_model(store: Store, submission: JobSubmission) -> str | None:
    """Id of the model that a training left, whatever became of its certification; a sweep leaves
    several (``trained_models``)."""
    if submission.kind != "train" or sweep_of(submission) is not None:
        return None
    found = store.read_json(store.training_dir(submission.id) / "trained.json")
    return None if found is None else str(found["model"]["digest"])


def rewritten_model(store: Store, job_id: str) -> str | None:
    """Id of the model that a job certifies in place of the uploaded one; None where it is that one,
    or not known yet."""
    facts = store.read_json(store.prepared_dir(job_id) / "facts.json")
    made = (facts or {}).get("rewritten")
    return None if made is None else str(made["id"])


def trained_models(store: Store, submission: JobSubmission) -> list[str | None]:
    """The same of every training of a job, in the order of a sweep's values."""
    return [trained_model(store, run) for run in runs_of(submission)]


def follow(store: Store, ledger: Ledger, job_id: str) -> str:
    """Bring the ledger in line with the outcome on disk; ``unknown`` where there is none."""
    outcome = store.read_json(store.outcome_path(job_id))
    if outcome is None:
        return "unknown"
    submission = JobSubmission.model_validate(outcome["submission"])
    if not ledger.create(submission) and submission.attempt > 1:
        ledger.reopen(submission)
    ledger.finish(
        job_id,
        outcome["status"],
        attempt=submission.attempt,
        error=outcome["error"],
        started_at=outcome["started_at"],
        finished_at=outcome["finished_at"],
        model_id=outcome["model_id"],
        samples=outcome["samples"],
    )
    return str(outcome["status"])


def give_up(store: Store, ledger: Ledger, submission: JobSubmission, exhausted: Exhausted) -> str:
    """Fail a job because one of its items has used up its tries."""
    reason = (
        exhausted.last_error
        or "the worker died without reporting a reason (killed, or out of memory)"
    )
    error = InternalError(
        f"{exhausted.item} was tried {exhausted.tries} times without success: {reason}",
        code=EXHAUSTED,
        hint="look at the worker's log for the reason, then retry the job",
    )
    return conclude(store, ledger, submission, "failed", error=error)


def cancel(store: Store, ledger: Ledger, state: JobState) -> str:
    """End a job as cancelled, now; the status it ended with.

    The leases of its items end with it. Workers notice this within two seconds and stop
    (``workers.jobs.runtime.lease_renewer``); a work horse that does not stop is killed
    (``workers.jobs.runtime.lease_watchdog``).
    """
    return conclude(
        store,
        ledger,
        state.submission,
        "cancelled",
        started_at=state.started_at,
        # A training's steps are no samples.
        samples=state.progress.done if state.progress.unit == "samples" else 0,
    )


def reopen(store: Store, ledger: Ledger, submission: JobSubmission) -> bool:
    """Begin the attempt that ``submission`` names, journalled before; whether it was new.

    The results of a cancelled attempt are kept. Of a failed one only two things are kept: a model
    that was trained to its end (training again would give the same), and the checkpoint of a
    training whose workers died. Every step may be repeated: the reconciler does so after a crash.
    """
    if store.attempt(submission.id) < submission.attempt:
        before = store.read_json(store.outcome_path(submission.id))
        if before is not None and before["status"] == "failed":
            died = (before["error"] or {}).get("code") == EXHAUSTED
            for run, model in zip(
                runs_of(submission), trained_models(store, submission), strict=True
            ):
                whole = model is not None and store.has(store.blob_path(model))
                unended = model is None and died
                store.clear_results(run.id, keep=("training",) if whole or unended else ())
            if sweep_of(submission) is not None:
                # A cascade's own report.
                store.clear_results(submission.id, keep=("training",))
        store.job_dir(submission.id)
        mark = store.attempt_path(submission.id, submission.attempt)
        store.create_json(mark, {"attempt": submission.attempt})
    if store.has(store.outcome_path(submission.id)):
        follow(store, ledger, submission.id)
        return False
    return ledger.create(submission) or ledger.reopen(submission)


def erase(store: Store, ledger: Ledger, job_id: str) -> None:
    """Remove a job whose deletion is in the journal. Raises RedisError, StorageFull."""
    store.remove_job(job_id)
    ledger.forget(job_id)


def outcome_state(store: Store, job_id: str) -> JobState | None:
    """The job as its outcome on disk tells it, without Redis; None where it has not ended."""
    outcome: dict[str, Any] | None = store.read_json(store.outcome_path(job_id))
    if outcome is None:
        return None
    submission = JobSubmission.model_validate(outcome["submission"])
    done = int(outcome["samples"])
    return JobState(
        submission=submission,
        status=outcome["status"],
        progress=Progress(done=done, total=done or None, message=outcome["status"]),
        started_at=outcome["started_at"],
        finished_at=outcome["finished_at"],
        error=outcome["error"],
        model_id=outcome["model_id"] or (submission.model.digest if submission.model else None),
    )
