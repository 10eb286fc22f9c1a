"""The trainings of a sweep: one submission becomes one run for each value.

A run has an id of its own (``service.contract.ids.run_id``), under which the store keeps what it
leaves, and which the API takes wherever it reads a job. A cascade of networks is a sweep over its
stages, the runs of which depend on those before them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from service.contract.ids import run_id
from service.contract.schemas.submissions import JobSubmission
from service.contract.schemas.training_plans import Hyperparameters, Sweep

__all__ = [
    "CASCADE_STAGES",
    "cascade_of",
    "runs_of",
    "stage_of",
    "sweep_of",
    "value_text",
    "with_value",
]

#: The option that makes a training a cascade, and what its runs are counted by.
CASCADE_STAGES, _STAGE = "cascade_stages", "stage"
#: Seeds are below it.
_SEEDS = 2**53


def cascade_of(submission: JobSubmission) -> int | None:
    """How many stages a cascade of networks has at most; None for any other job."""
    plan: dict[str, Any] = submission.training or {}
    stages = int(plan.get("hyperparameters", {}).get("options", {}).get(CASCADE_STAGES, 1))
    return stages if stages > 1 else None


def stage_of(submission: JobSubmission) -> int | None:
    """The number, from 1, of a run that is a stage of a cascade; None for any other job."""
    plan: dict[str, Any] = submission.training or {}
    return None if _STAGE not in plan else int(plan[_STAGE])


def sweep_of(submission: JobSubmission) -> Sweep | None:
    """What a job sweeps over, a cascade over its stages; None for any other job."""
    stages = cascade_of(submission)
    if stages is not None:
        return Sweep(name=_STAGE, values=list(range(1, stages + 1)))
    found = (submission.training or {}).get("sweep")
    return None if found is None else Sweep.model_validate(found)


def runs_of(submission: JobSubmission) -> list[JobSubmission]:
    """The trainings of a sweep, in the order of its values; of any other job the job itself.

    A stage of a cascade has a seed of its own, so that it does not begin as the one before it.
    """
    sweep = sweep_of(submission)
    if sweep is None:
        return [submission]
    plan = {name: part for name, part in (submission.training or {}).items() if name != "sweep"}
    made = with_value if cascade_of(submission) is None else _stage_plan
    return [
        submission.model_copy(
            update={
                "id": run_id(submission.id, place),
                "training": made(plan, sweep.name, value),
            }
        )
        for place, value in enumerate(sweep.values)
    ]


def with_value(plan: Mapping[str, Any], name: str, value: JsonValue) -> dict[str, Any]:
    """A plan, as stored, with another value of one hyperparameter or option of its method."""
    parameters = dict(plan["hyperparameters"])
    if name in Hyperparameters.model_fields:
        parameters[name] = value
    else:
        parameters["options"] = {**parameters.get("options", {}), name: value}
    return {**plan, "hyperparameters": parameters}


def _stage_plan(plan: Mapping[str, Any], name: str, value: JsonValue) -> dict[str, Any]:
    number = int(str(value))
    seed = (int(plan["seed"]) + number - 1) % _SEEDS
    return {**with_value(plan, CASCADE_STAGES, 1), "seed": seed, name: number}


def value_text(value: JsonValue) -> str:
    """A value of a sweep for people and file names' sake: ``0.1``, ``sgd``, compact JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
