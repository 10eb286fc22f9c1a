"""Jobs as the API shows them: how far they are, where their results lie, why they failed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from service.contract.schemas.submissions import JobKind, JobStatus, Strict

__all__ = [
    "WAITING",
    "Estimate",
    "JobDetails",
    "JobError",
    "JobLinks",
    "JobRecord",
    "Pareto",
    "ParetoPoint",
    "Progress",
    "RunLinks",
    "SweptModel",
]


#: Of a job that any worker may do.
WAITING = "waiting for a worker"


class Progress(Strict):
    """How far a job is, in ``steps`` of a training, then in ``samples``; ``total`` and ``eta_s``
    are null while they are unknown."""

    done: int = 0
    total: int | None = None
    unit: str = "samples"
    message: str = WAITING
    eta_s: float | None = None


class JobLinks(Strict):
    """Addresses of a job's results; null while there is no such result.

    ``certificate``, ``rewritten`` (the file that is certified in place of the uploaded one, with
    ``summation: partial-sums``): told by GET /jobs/{id} alone.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    itself: str = Field(alias="self")
    events: str | None = None
    report: str | None = None
    model: str | None = None
    training: str | None = None
    pareto: str | None = None
    cascade: str | None = None
    certificate: str | None = None
    rewritten: str | None = None


class JobError(BaseModel):
    """The problem a job ended with."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    title: str
    status: int
    detail: str
    code: str


class JobRecord(Strict):
    """A job as a list shows it."""

    id: str
    kind: JobKind
    status: JobStatus
    progress: Progress
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    error: JobError | None = None
    model_id: str | None = None
    dataset_id: str | None = None
    links: JobLinks


class Estimate(BaseModel):
    """What a certification costs at most, once its model and data were read.

    forward_passes: plain ones, of bounds and attack, at most; worker_s: about the seconds of one
    core that they take; left_out: bounds too large for a worker's memory or for the effort.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    samples: int
    forward_passes: float
    worker_s: float
    left_out: list[str] = []
    warning: str | None = None


class RunLinks(Strict):
    """Addresses of one training of a sweep: it is read like a job; null while there is no such
    result."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    itself: str = Field(alias="self")
    model: str | None = None
    report: str | None = None


class SweptModel(Strict):
    """One value of a sweep and what it came to. ``error``: why its training failed; the other
    values go on. Of a cascade a stage; ``error``: why it, and those after it, are not there."""

    value: JsonValue
    model_id: str | None = None
    error: JobError | None = None
    links: RunLinks


class ParetoPoint(Strict):
    """A model of a sweep with its accuracies; those are null without labels. ``on_front``: no
    other one is better in clean or certified accuracy without being worse in the other."""

    value: JsonValue
    model_id: str | None
    soundness: str
    clean_accuracy: float | None
    certified_accuracy: float | None
    attack_accuracy: float | None
    samples: int
    on_front: bool = False
    links: RunLinks


class JobDetails(JobRecord):
    """A job as GET /jobs/{id} shows it.

    ``spec``: of the certification, defaults filled in; null for a training that certifies nothing.
    ``estimate``: null until model and data were read.
    ``plan``: of a training, what its recipe and defaults came to.
    ``models``: of a sweep, one for each value, in their order; of a cascade, one for each stage;
    null for any other job.
    """

    spec: dict[str, JsonValue] | None = None
    plan: dict[str, JsonValue] | None = None
    estimate: Estimate | None = None
    models: list[SweptModel] | None = None


class Pareto(Strict):
    """The models of a sweep at one epsilon: clean over certified accuracy."""

    job_id: str
    parameter: str
    norm: str
    epsilon: float
    epsilon_exact: str
    points: list[ParetoPoint]
