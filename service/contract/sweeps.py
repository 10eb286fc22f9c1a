"""The trainings of a sweep: one submission becomes one run for each value.

A run has an id of its own (``service.contract.ids.run_id``), under which the store keeps what it
leaves, and which the API takes wherever it reads a job.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from service.contract.ids import run_id
from service.contract.schemas.submissions import JobSubmission
from service.contract.schemas.training_plans import Hyperparameters, Sweep

__all__ = ["runs_of", "sweep_of", "value_text", "with_value"]


def sweep_of(submission: JobSubmission) -> Sweep | None:
    """What a job sweeps over; None for any other job."""
    found = (submission.training or {}).get("sweep")
    return None if found is None else Sweep.model_validate(found)


def runs_of(submission: JobSubmission) -> list[JobSubmission]:
    """The trainings of a sweep, in the order of its values; of any other job the job itself."""
    sweep = sweep_of(submission)
    if sweep is None:
        return [submission]
    plan = {name: part for name, part in (submission.training or {}).items() if name != "sweep"}
    return [
        submission.model_copy(
            update={
                "id": run_id(submission.id, place),
                "training": with_value(plan, sweep.name, value),
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


def value_text(value: JsonValue) -> str:
    """A value of a sweep for people and file names' sake: ``0.1``, ``sgd``, compact JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
