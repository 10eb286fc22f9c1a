"""The item ``merge``: all shard results become one report, written once."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.network import Network
from service.contract.schemas.problems import InternalError, InvalidInput
from service.contract.schemas.submissions import JobSubmission, Spec
from service.contract.storage.pictures import COUNTEREXAMPLES
from service.contract.storage.store import Store
from service.contract.sweeps import runs_of, stage_of
from service.contract.times import now, seconds
from workers.jobs.inspection.valid_inputs import ValidInputs
from workers.jobs.items.prepare import facts_of, shards
from workers.jobs.items.trained_model import certified_model, trained
from workers.jobs.report.build import build_report, certificate_remarks, sample_rows
from workers.jobs.report.cascade_report import build_cascade_report, with_labels
from workers.jobs.report.certificate import Samples, certificate
from workers.jobs.report.pictures import counterexample_pictures
from workers.jobs.report.verdicts import verdicts
from workers.verification.cascade.run import deployed_answers
from workers.verification.results import SampleResults
from workers.verification.rounding import answer_gap

__all__ = ["concatenate", "digest_of", "merge", "merge_cascade", "merge_notes"]


def merge(store: Store, submission: JobSubmission, *, started_at: str | None) -> int:
    """Write report, sample rows, counterexamples and certificate; the number of samples.

    Each file is created once, so a merge that runs twice changes nothing.
    """
    if not submission.spec:
        return 0
    facts = facts_of(store, submission.id)
    results = _results(store, submission, facts)
    if stage_of(submission) is not None:
        results = with_labels(results, *_labels(store, submission, facts))
    devices = results.notes.pop("device", [])
    device = ", ".join(devices) if isinstance(devices, list) else str(devices)
    wall_s = 0.0 if started_at is None else max(0.0, now() - seconds(started_at))
    model = certified_model(store, submission, facts)
    submission = submission.model_copy(update={"model": model})
    # ``prepare`` computed the deployed network's predictions.
    forward_s = float(facts.get("forward_s", 0.0)) + results.seconds.get("forward", 0.0)
    timing = {"wall_s": wall_s, "forward_s": forward_s}
    rows = "".join(
        json.dumps(row, allow_nan=False) + "\n" for row in sample_rows(results, submission, facts)
    ).encode()
    spec = Spec.model_validate(submission.spec)
    counterexamples = _counterexamples(results, spec, facts)
    proofs = _certificate(store, submission, facts, results)
    report = build_report(
        submission,
        facts,
        results,
        timing=timing,
        device=device or "cpu",
        digests={
            "samples_digest": digest_of(rows),
            "counterexamples_digest": digest_of(counterexamples),
            **({} if proofs is None else {"certificate_digest": digest_of(proofs)}),
        },
    )
    store.create(store.samples_path(submission.id), rows)
    store.create(store.counterexamples_path(submission.id), counterexamples)
    store.create(
        store.counterexamples_path(submission.id).with_name(COUNTEREXAMPLES),
        counterexample_pictures(
            results,
            spec.epsilons,
            store.prepared_dir(submission.id) / "data.npz",
            ValidInputs.of_facts(facts, clip=spec.clip).clip,
        ),
    )
    store.create_json(store.report_path(submission.id), report)
    return len(results.index)


def merge_cascade(store: Store, submission: JobSubmission, runs: Sequence[JobSubmission]) -> None:
    """Write the report of a cascade, once; ``runs``: its stages, which are merged already.

    Raises InvalidInput (dataset_changed) where they were certified on different samples.
    """
    if not submission.spec:
        return
    facts = [facts_of(store, run.id) for run in runs]
    _require_same_samples(store, runs, facts)
    results = [_results(store, run, told) for run, told in zip(runs, facts, strict=True)]
    spec = Spec.model_validate(submission.spec)
    sound = spec.soundness == "sound"
    label, _ = _labels(store, runs[0], facts[0])
    stages = []
    for number, run in enumerate(runs, 1):
        made = trained(store, run.id)
        assert made is not None
        model, samples = made["model"]["digest"], made["samples"]
        stages.append({"stage": number, "model_id": model, "trained_on": samples})
    missing = runs_of(submission)[len(runs) :]
    ended = [store.read_json(store.failure_path(run.id)) for run in missing]
    report = build_cascade_report(
        submission,
        stages,
        results,
        [verdicts(found, spec.epsilons, sound=sound).certified for found in results],
        label if facts[0]["labelled"] else None,
        [str(problem["detail"]) for problem in ended[:1] if problem is not None],
    )
    store.create_json(store.report_path(submission.id), report)


def _require_same_samples(
    store: Store, runs: Sequence[JobSubmission], facts: Sequence[Mapping[str, Any]]
) -> None:
    """A registered data set may be replaced before a job is retried, and a cancelled one keeps what
    was prepared."""

    def prepared(place: int) -> list[NDArray[Any]]:
        # Without labels ``y`` is what the stage predicts.
        names = ("x", "index", "y") if facts[place]["labelled"] else ("x", "index")
        path = store.prepared_dir(runs[place].id) / "data.npz"
        with np.load(path, allow_pickle=False) as data:
            return [data[name] for name in names]

    first = prepared(0)
    for place in range(1, len(runs)):
        other = prepared(place)
        if len(first) != len(other) or not all(map(np.array_equal, first, other)):
            raise InvalidInput(
                f"the data set has changed since stage 1 was certified: stage {place + 1} met "
                "other samples",
                code="dataset_changed",
                hint="retry the job: all stages are then certified on the samples as they are now",
                field="test_dataset",
            )


def _results(store: Store, submission: JobSubmission, facts: Mapping[str, Any]) -> SampleResults:
    """The rows of all shards. Raises InternalError where one is missing."""
    parts = []
    for shard, _ in enumerate(shards(dict(facts))):
        path = store.shard_path(submission.id, shard)
        if not store.has(path):
            raise InternalError(f"the result of shard {shard} is missing", code="shard_missing")
        parts.append(SampleResults.load(path))
    return concatenate(parts)


def _labels(
    store: Store, submission: JobSubmission, facts: Mapping[str, Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The data set's labels [n], and the deployed network's margins of them [n]."""
    with np.load(store.prepared_dir(submission.id) / "data.npz", allow_pickle=False) as data:
        label, logits = data["y"], data["logits"]
    _, margin, _ = deployed_answers(logits, label, answer_gap(facts.get("dropped_output")))
    return label, margin.numpy().astype(np.float64)


def _certificate(
    store: Store, submission: JobSubmission, facts: Mapping[str, Any], results: SampleResults
) -> bytes | None:
    """The certificate, written once; None where nothing in it could be proved again."""
    spec = Spec.model_validate(submission.spec)
    path = store.certificate_path(submission.id)
    inputs = ValidInputs.of_facts(facts, clip=spec.clip)
    if spec.soundness != "sound" or inputs.unit != 1:
        return None
    if not store.has(path):
        folder = store.prepared_dir(submission.id)
        with np.load(folder / "data.npz", allow_pickle=False) as data:
            x = data["x"]
        by_ibp = np.array([[name == "ibp" for name in names] for names in results.decided_by])
        made = certificate(
            Network.load(folder),
            Samples(x, results.label, results.prediction, results.index, by_ibp),
            norm=spec.norm,
            epsilons=spec.epsilons,
            # Another range than [0, 1]: what is claimed is claimed of all inputs.
            clip=inputs.clip is True,
            about=certificate_remarks(submission, facts, results),
        )
        if made is None:
            return None
        store.create(path, made)
    return path.read_bytes()


def digest_of(data: bytes) -> str:
    """``sha256:...`` of a file."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def concatenate(parts: Sequence[SampleResults]) -> SampleResults:
    """The rows of all shards in order; seconds added, notes merged."""
    counterexamples = {}
    offset = 0
    for part in parts:
        for key, value in part.counterexamples.items():
            row, epsilon = key.split(",")
            counterexamples[f"{int(row) + offset},{epsilon}"] = value
        offset += len(part.index)
    seconds_spent: dict[str, float] = {}
    for part in parts:
        for name, spent in part.seconds.items():
            seconds_spent[name] = seconds_spent.get(name, 0.0) + spent
    return SampleResults(
        index=np.concatenate([part.index for part in parts]),
        label=np.concatenate([part.label for part in parts]),
        prediction=np.concatenate([part.prediction for part in parts]),
        margin=np.concatenate([part.margin for part in parts]),
        radius=np.concatenate([part.radius for part in parts]),
        certified=np.concatenate([part.certified for part in parts]),
        falsified=np.concatenate([part.falsified for part in parts]),
        method=[name for part in parts for name in part.method],
        decided_by=[names for part in parts for names in part.decided_by],
        counterexamples=counterexamples,
        seconds=seconds_spent,
        notes=merge_notes([part.notes for part in parts]),
    )


def merge_notes(notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One note per name: counts add up, of measurements the largest stays, texts are collected.

    Failure probabilities add up too (union bound). Names that one shard alone knows are kept.
    """
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for note in notes for name in note):
        values = [note[name] for note in notes if name in note]
        if name == "failure_probability":
            merged[name] = min(1.0, float(sum(values)))
        else:
            merged[name] = _merge_values(values)
    return merged


def _merge_values(values: list[Any]) -> Any:
    first = values[0]
    if all(isinstance(value, bool) for value in values):
        return any(values)
    if all(isinstance(value, int) for value in values):
        return sum(values)
    if all(isinstance(value, int | float) for value in values):
        return max(values)
    if all(isinstance(value, Mapping) for value in values):
        return merge_notes(values)
    if all(isinstance(value, list) for value in values):
        return _distinct([item for value in values for item in value])
    distinct = _distinct(values)
    return first if len(distinct) == 1 else distinct


def _distinct(values: list[Any]) -> list[Any]:
    seen: dict[str, Any] = {}
    for value in values:
        seen.setdefault(json.dumps(value, sort_keys=True), value)
    return list(seen.values())


def _counterexamples(results: SampleResults, spec: Spec, facts: Mapping[str, Any]) -> bytes:
    """An npz: x float32 [K, ...], uint8 where the model takes bytes; index (in the data set),
    epsilon and label [K]."""
    keys = sorted(tuple(int(part) for part in key.split(",")) for key in results.counterexamples)
    shape = tuple(facts["input_shape"])
    x = [results.counterexamples[f"{row},{place}"] for row, place in keys]
    kind = np.uint8 if ValidInputs.of_facts(facts, clip=spec.clip).bytes_alone else np.float32
    file = io.BytesIO()
    np.savez_compressed(
        file,
        x=(np.stack(x) if x else np.zeros((0, *shape))).astype(kind),
        index=np.array([results.index[row] for row, _ in keys], dtype=np.int64),
        epsilon=np.array([float(spec.epsilons[place]) for _, place in keys], dtype=np.float64),
        label=np.array([results.label[row] for row, _ in keys], dtype=np.int64),
    )
    return file.getvalue()
