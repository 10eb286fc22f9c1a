"""The result of a training, as the items after it need it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.contract.schemas.problems import InternalError, InvalidInput
from service.contract.schemas.submissions import JobSubmission, ModelSource, Spec
from service.contract.storage.store import Store
from service.contract.sweeps import runs_of, sweep_of

__all__ = [
    "certification_samples",
    "certified_model",
    "certified_runs",
    "held_samples",
    "model_of",
    "trained",
    "trained_path",
]


def trained_path(store: Store, job_id: str) -> Any:
    """``trained.json``: written last, so that everything it names exists."""
    return store.training_dir(job_id) / "trained.json"


def trained(store: Store, job_id: str) -> dict[str, Any] | None:
    """``model`` (a ModelSource), ``history``, ``samples`` trained on, ``total`` and ``held`` (rows
    kept for the certification); None while it trains."""
    return store.read_json(trained_path(store, job_id))


def model_of(store: Store, submission: JobSubmission) -> ModelSource:
    """The model that a job certifies: the one submitted, or the one it trained."""
    if submission.model is not None:
        return submission.model
    facts = trained(store, submission.id)
    if facts is None:
        raise InternalError("the trained model is missing", code="not_trained")
    return ModelSource.model_validate(facts["model"])


def certified_model(
    store: Store, submission: JobSubmission, facts: Mapping[str, Any]
) -> ModelSource:
    """The same, or the file that was made of it and is certified in its place, as ``prepare``
    found."""
    made = facts.get("rewritten")
    if made is None:
        return model_of(store, submission)
    return ModelSource(digest=made["id"], format="onnx", name=made["name"], size=made["size"])


def certified_runs(store: Store, submission: JobSubmission) -> list[JobSubmission]:
    """What a job certifies: itself, or of a sweep every run that has a model."""
    runs = runs_of(submission)
    if sweep_of(submission) is None:
        return runs
    return [run for run in runs if trained(store, run.id) is not None]


def certification_samples(
    store: Store, submission: JobSubmission, spec: Spec
) -> int | str | list[int]:
    """The samples to certify on: the spec's choice, of a training without a test set among those
    that were held out. Raises InvalidInput."""
    if submission.training is None or not submission.training["held_out"]:
        return spec.samples if spec.indices is None else spec.indices
    facts = trained(store, submission.id)
    assert facts is not None
    return held_samples(facts["held"], spec)


def held_samples(held: list[int], spec: Spec) -> list[int]:
    """The spec's choice among the rows that were not trained on.

    Raises InvalidInput where it names a row that the model was trained on.
    """
    if spec.indices is None:
        return held if spec.samples == "all" else held[: int(spec.samples)]
    seen = sorted({*spec.indices} - {*held})
    if seen:
        raise InvalidInput(
            f"sample {seen[0]} is not among the {len(held)} that are held out from training",
            code="invalid_indices",
            hint="choose among the held-out samples "
            f"{', '.join(map(str, held[:20]))}{', ...' if held[20:] else ''}; "
            'or name a "test_dataset"',
            field="certify.indices",
        )
    return spec.indices
