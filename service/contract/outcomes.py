"""How a job ends: ``outcome.json`` on disk first, created once, then the ledger follows it."""

from __future__ import annotations

from typing import Any, Literal

from service.contract.ledger import Exhausted, JobState, Ledger
from service.contract.problems import InternalError, Problem
from service.contract.schemas import JobSubmission, Progress
from service.contract.store import Store
from service.contract.times import now, rfc3339

__all__ = ["conclude", "follow", "give_up", "outcome_state"]


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
    store.job_dir(submission.id)
    path = store.outcome_path(submission.id)
    store.create_json(path, outcome)
    return follow(store, ledger, submission.id)


def follow(store: Store, ledger: Ledger, job_id: str) -> str:
    """Bring the ledger in line with the outcome on disk; ``unknown`` where there is none."""
    outcome = store.read_json(store.outcome_path(job_id))
    if outcome is None:
        return "unknown"
    ledger.create(JobSubmission.model_validate(outcome["submission"]))
    ledger.finish(
        job_id,
        outcome["status"],
        error=outcome["error"],
        started_at=outcome["started_at"],
        finished_at=outcome["finished_at"],
        model_id=outcome["model_id"],
        samples=outcome["samples"],
    )
    return str(outcome["status"])


def give_up(store: Store, ledger: Ledger, submission: JobSubmission, exhausted: Exhausted) -> str:
    """Fail a job one of whose items has ended too many workers."""
    reason = exhausted.last_error or "the worker died without a word (killed, or out of memory)"
    error = InternalError(
        f"{exhausted.item} was tried {exhausted.tries} times without success: {reason}",
        code="attempts_exhausted",
        hint="the worker's log says more",
    )
    return conclude(store, ledger, submission, "failed", error=error)


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
