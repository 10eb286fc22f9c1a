"""The report of a finished job: all samples' verdicts become one checked, digestible document."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from service.contract.schemas.epsilons import epsilon_text
from service.contract.schemas.report import Report, SampleRow, result_digest
from service.contract.schemas.submissions import JobSubmission, ModelSource, Spec
from service.contract.times import now, rfc3339
from workers.jobs.inspection.valid_inputs import ValidInputs
from workers.jobs.report.remarks import in_words, remarks
from workers.jobs.report.statement import claim_about, claim_of_rewritten, statement
from workers.jobs.report.statistics import (
    accuracy_curve,
    clopper_pearson,
    radius_summary,
    unbounded,
)
from workers.jobs.report.verdicts import ContradictionError, Verdicts, verdicts
from workers.verification.region import largest_distance
from workers.verification.results import SampleResults

__all__ = [
    "build_report",
    "certificate_remarks",
    "criterion_verdict",
    "report_model",
    "sample_rows",
    "versions",
]

_PACKAGES = ("certserve", "torch", "numpy", "scipy", "onnx", "onnxruntime")


def build_report(
    submission: JobSubmission,
    facts: Mapping[str, Any],
    results: SampleResults,
    *,
    timing: Mapping[str, float],
    device: str,
    digests: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The JSON report, checked against the contract's schema, with its ``result_digest``.

    ``facts`` is what ``prepare`` found: ``layers`` (name, kind, shape of each), ``parameters``,
    ``input_shape``, ``classes``, ``graph_digest``, ``labelled``, ``total`` (samples in the data
    set), ``dropped_output``, ``batch`` ("any" or rows), ``output``, ``other_outputs``,
    ``binary``, ``parity`` (difference, budget, inputs) and ``rewritten``: None, or the file that
    is certified in place of the upload (id) and what it was made from; it is ``submission.model``.
    ``timing`` holds ``wall_s``; ``digests`` those of the files beside the report.
    Raises ContradictionError when the verdicts cannot all be true: that job must fail.
    """
    spec = Spec.model_validate(submission.spec)
    assert submission.model is not None
    assert submission.dataset is not None
    count, labelled = len(results.index), bool(facts["labelled"])
    found = verdicts(results, spec.epsilons, sound=spec.soundness == "sound")
    inputs = ValidInputs.of_facts(facts, clip=spec.clip)
    cap = _cap(spec, inputs, facts, found)
    notes = _finite(dict(results.notes))
    failure_probability = float(notes.pop("failure_probability", 0.0))
    rows = [_epsilon_result(spec, found, place) for place in range(len(spec.epsilons))]
    clean = int(found.correct.sum()) / count
    _check_bracket(rows, clean)
    image = _images(submission.dataset.kind, facts["input_shape"])
    budget_spent = bool(notes.pop("budget_spent", False))
    report = {
        "schema": "certserve/report/1",
        "job_id": submission.id,
        "model": report_model(submission.model, facts),
        "dataset": {
            "id": submission.dataset.id,
            "name": submission.dataset.name,
            "samples": count,
            "total": facts.get("total"),
            "split": submission.dataset.split,
            "classes": facts.get("classes_of_folders"),
            "digest": facts.get("data_digest"),
        },
        "threat": {
            "norm": spec.norm,
            "epsilons": [float(epsilon) for epsilon in spec.epsilons],
            "epsilons_exact": [epsilon_text(epsilon) for epsilon in spec.epsilons],
            "clip": spec.clip,
            "input_range": spec.input_range,
            "largest_distance": cap if inputs.clip else None,
            "normalization": None
            if spec.normalization is None
            else spec.normalization.model_dump(mode="json"),
        },
        "graph_digest": facts["graph_digest"],
        "spec": spec.normal(),
        "method": spec.method,
        "soundness": spec.soundness,
        "statement": statement(
            norm=spec.norm,
            soundness=spec.soundness,
            valid=in_words(inputs),
            labelled=labelled,
            failure_probability=failure_probability,
            batch=facts.get("batch", "any"),
            about=claim_about(
                facts.get("output"),
                facts.get("other_outputs", ()),
                binary=bool(facts.get("binary")),
                dropped=facts.get("dropped_output"),
                names=facts.get("class_names") or (),
            ),
            file=claim_of_rewritten(facts.get("rewritten")),
            image=image,
        ),
        "failure_probability": failure_probability,
        "clean_accuracy": clean if labelled else None,
        "results": rows,
        "radius": radius_summary(found.radius, cap, clip=spec.clip) if spec.radius else None,
        "curve": _curve(spec, found, rows, cap),
        "by_method": dict(sorted(Counter(results.method).items())),
        "parity": _finite(facts.get("parity")),
        "criterion": criterion_verdict(
            spec,
            rows,
            count,
            comparable=labelled and not budget_spent and spec.soundness == "sound",
        ),
        "budget_spent": budget_spent,
        "warnings": remarks(spec, found, results, facts, cap, inputs, image=image),
        "notes": notes,
        "timing": _timing(timing, results, count),
        "device": device,
        "versions": versions(),
        "created_at": rfc3339(now()),
        **(digests or {}),
    }
    document = Report.model_validate(report).model_dump(mode="json", by_alias=True)
    document["result_digest"] = result_digest(document)
    return document


def report_model(model: ModelSource, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says of the model, the file that is certified, and what ``prepare`` found."""
    return {
        "id": model.digest,
        "format": model.format,
        "name": model.name,
        "layers": list(facts["layers"]),
        "parameters": facts["parameters"],
        "input_shape": list(facts["input_shape"]),
        "classes": facts.get("classes"),
        "dropped_output": facts.get("dropped_output"),
        "pairing": facts.get("pairing"),
        "batch": facts.get("batch"),
        "output": facts.get("output"),
        "binary": bool(facts.get("binary")),
        "takes_bytes": bool(facts.get("takes_bytes")),
        "class_names": facts.get("class_names"),
        "rewritten_from": (facts.get("rewritten") or {}).get("from"),
    }


def sample_rows(
    results: SampleResults, submission: JobSubmission, facts: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The lines of ``samples.jsonl``, one per sample, with the same verdicts as the report."""
    spec = Spec.model_validate(submission.spec)
    labelled = bool(facts["labelled"])
    found = verdicts(results, spec.epsilons, sound=spec.soundness == "sound")
    inputs = ValidInputs.of_facts(facts, clip=spec.clip)
    cap = _cap(spec, inputs, facts, found)
    beyond = unbounded(found.radius, cap, clip=spec.clip)
    for row in range(len(results.index)):
        yield SampleRow(
            index=int(results.index[row]),
            label=int(results.label[row]) if labelled else None,
            prediction=int(results.prediction[row]),
            margin=_finite(float(results.margin[row])),
            radius=float(found.radius[row]) if spec.radius and not beyond[row] else None,
            unbounded=spec.radius and bool(beyond[row]),
            method=results.method[row],
            certified=found.certified[row].tolist(),
            falsified=found.falsified[row].tolist(),
        ).model_dump(mode="json")


def certificate_remarks(
    submission: JobSubmission, facts: Mapping[str, Any], results: SampleResults
) -> dict[str, Any]:
    """What a certificate says of the job it belongs to, for people: the checker does not look."""
    spec = Spec.model_validate(submission.spec)
    found = verdicts(results, spec.epsilons, sound=True)
    assert submission.model is not None
    return {
        "job_id": submission.id,
        "model_id": submission.model.digest,
        "model_name": submission.model.name,
        "graph_digest": facts["graph_digest"],
        "data_digest": facts.get("data_digest"),
        "report_samples": len(results.index),
        "report_certified": found.certified.sum(0).tolist(),
    }


def _cap(spec: Spec, inputs: ValidInputs, facts: Mapping[str, Any], found: Verdicts) -> float:
    """The distance, in units of epsilons, that no two valid inputs exceed. Without a range: the
    largest radius that is known, and no less than that of pixels."""
    shape = tuple(facts["input_shape"])
    cap = largest_distance(shape, spec.norm, inputs.clip or True) / inputs.unit
    finite = found.radius[np.isfinite(found.radius)]
    return cap if inputs.clip or not len(finite) else max(cap, float(finite.max()))


def _epsilon_result(spec: Spec, found: Verdicts, place: int) -> dict[str, Any]:
    count, correct = len(found.correct), int(found.correct.sum())
    certified = int(found.certified[:, place].sum())
    falsified = int(found.falsified[:, place].sum())
    return {
        "epsilon": float(spec.epsilons[place]),
        "epsilon_exact": epsilon_text(spec.epsilons[place]),
        "certified_accuracy": certified / count,
        "attack_accuracy": None if spec.attack is None else (correct - falsified) / count,
        "certified": certified,
        "falsified": falsified,
        "undecided": correct - certified - falsified,
        "interval_95": clopper_pearson(certified, count),
    }


def _images(kind: str, input_shape: Sequence[int]) -> bool:
    """Whether the samples are images: arrays of any other shape than an image's are features."""
    return kind not in ("npz", "npy") or len(input_shape) == 3


def criterion_verdict(
    spec: Spec, rows: list[dict[str, Any]], count: int, *, comparable: bool
) -> dict[str, Any] | None:
    """What the spec demands, and whether the certified count reaches it.

    comparable: the counts are proved ones of the whole work on labelled data; else it is not met.
    """
    wish = spec.criterion
    if wish is None:
        return None
    certified = rows[spec.epsilons.index(wish.epsilon)]["certified"]
    met = comparable and wish.reached_by(certified, count)
    return {**wish.model_dump(mode="json"), "met": met}


def _check_bracket(rows: list[dict[str, Any]], clean: float) -> None:
    """Raise unless certified <= attacked <= clean at every epsilon."""
    for row in rows:
        attacked = clean if row["attack_accuracy"] is None else row["attack_accuracy"]
        if not row["certified_accuracy"] <= attacked <= clean or row["undecided"] < 0:
            raise ContradictionError(f"the bracket is broken at epsilon {row['epsilon']}: {row}")


def _curve(spec: Spec, found: Verdicts, rows: list[dict[str, Any]], cap: float) -> dict[str, Any]:
    epsilons = [float(epsilon) for epsilon in spec.epsilons]
    curve: dict[str, Any] = dict(accuracy_curve(found, epsilons, cap, radius_known=spec.radius))
    if spec.attack is not None:
        attacked = {row["epsilon"]: row["attack_accuracy"] for row in rows}
        curve["attack_accuracy"] = [attacked.get(epsilon) for epsilon in curve["epsilon"]]
    return curve


def _timing(timing: Mapping[str, float], results: SampleResults, count: int) -> dict[str, float]:
    wall = float(timing["wall_s"])
    seconds = {
        f"{name}_s": results.seconds.get(name, 0.0) for name in ("forward", "bound", "attack")
    }
    return {
        "wall_s": wall,
        **{name: float(timing.get(name, value)) for name, value in seconds.items()},
        "samples_per_s": count / wall if wall > 0 else 0.0,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that took part; what is not installed is left out."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _finite(value: Any) -> Any:
    """The same JSON value with every NaN and infinity replaced by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
