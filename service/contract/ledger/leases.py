"""What the ledger returns: leases, or why there is none; surveys; and the state of jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from service.contract.schemas.job_records import WAITING, Progress
from service.contract.schemas.submissions import JobSubmission
from service.contract.times import rfc3339

__all__ = [
    "Busy",
    "Exhausted",
    "JobState",
    "Lease",
    "NoWork",
    "Renewal",
    "Survey",
    "state_of",
]


@dataclass(frozen=True)
class Lease:
    """The right to do one item: pass it back to renew, commit or release.

    ``token`` is the fencing token, larger than that of every earlier lease of the job; ``tries``
    counts this one.
    """

    job_id: str
    item: str
    token: int
    tries: int


@dataclass(frozen=True)
class Busy:
    """Nothing is free now; the next lease may run out in ``retry_s`` seconds."""

    retry_s: float


@dataclass(frozen=True)
class Exhausted:
    """The item has used up its tries: the caller must fail the job (outcomes.give_up)."""

    item: str
    tries: int
    last_error: str


@dataclass(frozen=True)
class NoWork:
    """The job has ended, so it needs no worker."""

    reason: Literal["cancelled", "finished", "unknown"]


@dataclass(frozen=True)
class Renewal:
    """``valid``: the caller still holds the lease. ``cancel``: stop as soon as possible."""

    valid: bool
    cancel: bool


@dataclass(frozen=True)
class Survey:
    """What the reconciler sees of a job. ``devices``: how many its free training needs, else 1;
    ``awaits``: what it says that it waits for."""

    status: str
    free: int
    leased: int
    exhausted: Exhausted | None
    devices: int = 1
    awaits: str = ""


@dataclass(frozen=True)
class JobState:
    """A job as the ledger knows it; times are RFC 3339."""

    submission: JobSubmission
    status: str
    progress: Progress
    started_at: str | None
    finished_at: str | None
    error: dict[str, Any] | None
    model_id: str | None


def state_of(fields: Mapping[str, str]) -> JobState:
    """The job behind the fields of its hash."""

    def moment(name: str) -> str | None:
        return rfc3339(float(fields[name])) if fields.get(name) else None

    submission = JobSubmission.model_validate_json(fields["submission"])
    status = fields["status"]
    messages = {"queued": WAITING, "running": "starting"}
    progress = Progress(
        done=int(float(fields.get("done", 0))),
        total=int(fields["total"]) if fields.get("total") else None,
        unit=fields.get("unit") or ("steps" if submission.kind == "train" else "samples"),
        message=status
        if status not in messages
        else fields.get("awaits") or fields.get("message") or messages[status],
        eta_s=float(fields["eta_s"]) if fields.get("eta_s") else None,
    )
    model_id = fields.get("model_id") or (submission.model.digest if submission.model else None)
    return JobState(
        submission=submission,
        status=status,
        progress=progress,
        started_at=moment("started_at"),
        finished_at=moment("finished_at"),
        error=json.loads(fields["error"]) if fields.get("error") else None,
        model_id=model_id,
    )
