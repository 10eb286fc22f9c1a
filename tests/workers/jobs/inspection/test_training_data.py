"""What a training reads of an upload: what it holds out, and what it refuses before it begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract.ids import new_job_id
from service.contract.schemas.problems import InvalidInput
from service.contract.schemas.submissions import DatasetSource, JobSubmission, Spec
from service.contract.schemas.training_plans import TrainSpec, certification_spec
from service.contract.times import now, rfc3339
from service.recipes.plans import plan_of
from tests.workers.jobs.conftest import CLASSES, SIDE, Corridor
from workers.jobs.datasets.arrays import DataError
from workers.jobs.inspection.training_data import write_training_data
from workers.jobs.items.trained_model import held_samples
from workers.jobs.work_loop import WorkLoop

pytestmark = pytest.mark.usefixtures("forked_inspections")

NETWORK: dict[str, Any] = {
    "name": "orthogonal-dense",
    "input": [1, SIDE, SIDE],
    "widths": [8],
    "classes": CLASSES,
}


def sorted_npz(path: Path, samples: int) -> Path:
    """Images sorted by class, as a tree of class folders is read."""
    x = np.arange(samples * SIDE * SIDE, dtype=np.uint32).astype(np.uint8)
    np.savez(path, x=x.reshape(samples, SIDE, SIDE), y=np.sort(np.arange(samples) % CLASSES))
    return path


def read(tmp_path: Path, samples: int, held_out: float = 0.1) -> dict[str, Any]:
    request = {
        "architecture": NETWORK,
        "activation": "maxmin",
        "held_out": held_out,
        "report": None,
        "dataset": {
            "kind": "npz",
            "files": {"file": str(sorted_npz(tmp_path / "sorted.npz", samples))},
            "split": "test",
        },
        "bounds": {"max_bytes": 2**30, "max_samples": 1000},
    }
    write_training_data(request, tmp_path)
    facts: dict[str, Any] = json.loads((tmp_path / "facts.json").read_text())
    return facts


def test_what_is_held_out_is_not_trained_on_and_of_every_class(tmp_path: Path) -> None:
    facts = read(tmp_path, 300)
    x, y = np.load(tmp_path / "x.npy"), np.load(tmp_path / "y.npy")
    with np.load(tmp_path / "sorted.npz") as data:
        held = np.array(facts["held"])
        kept = np.setdiff1d(np.arange(300), held)
        assert len(held) == 30
        assert np.array_equal(x[:, 0], data["x"][kept])
        assert np.array_equal(y, data["y"][kept])
        assert set(data["y"][held]) == set(range(CLASSES)) == set(y)
    assert read(tmp_path, 300) == facts  # whoever reads it, and whenever
    assert read(tmp_path, 300, held_out=0.0)["held"] == []
    assert np.load(tmp_path / "x.npy").shape == (300, 1, SIDE, SIDE)


@pytest.mark.parametrize(("samples", "held_out"), [(9, 0.1), (1, 0.0)])
def test_too_few_samples_are_refused(tmp_path: Path, samples: int, held_out: float) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, samples, held_out)
    assert caught.value.code == "too_few_samples"
    assert caught.value.hint


def test_floats_are_pixels_or_refused(tmp_path: Path) -> None:
    path = sorted_npz(tmp_path / "sorted.npz", 30)
    request = {
        "architecture": NETWORK,
        "activation": "maxmin",
        "held_out": 0.0,
        "report": None,
        "dataset": {"kind": "npz", "files": {"file": str(path)}, "split": "test"},
        "bounds": {"max_bytes": 2**30, "max_samples": 1000},
    }
    x = np.random.default_rng(0).random((30, SIDE, SIDE))
    np.savez(path, x=x, y=np.zeros(30, np.int64))
    write_training_data(request, tmp_path)
    kept = np.load(tmp_path / "x.npy")
    assert kept.dtype == np.float32
    assert np.array_equal(kept[:, 0], x.astype(np.float32))
    np.savez(path, x=2 * x, y=np.zeros(30, np.int64))
    with pytest.raises(DataError) as caught:
        write_training_data(request, tmp_path)
    assert caught.value.code == "sample_out_of_range"
    assert "normalization" not in (caught.value.hint or "")  # a training takes none


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({}, None, None),
        ({"normalization": {"mean": [0.5], "std": [0.2]}}, None, None),
        (
            {"normalization": {"mean": [0.5] * 5, "std": [0.2] * 5}},
            "invalid_normalization",
            "certify.normalization",
        ),
        ({"selection": [0, 99]}, "index_out_of_range", "certify.indices"),
        ({"y": CLASSES}, "label_out_of_range", "test_dataset"),
        ({"side": SIDE + 1}, "shape_mismatch", "test_dataset"),
        ({"top": 1.5}, "sample_out_of_range", "test_dataset"),
        ({"top": 1.5, "clip": False}, None, None),
    ],
)
def test_what_the_report_would_be_refused_for_is_refused_before_the_training(
    tmp_path: Path, change: dict[str, Any], code: str | None, field: str | None
) -> None:
    """Labels and shape of the test set, the samples asked for, the normalisation."""
    change = dict(change)
    side, top, label = change.pop("side", SIDE), change.pop("top", 1.0), change.pop("y", 1)
    tests = tmp_path / "test.npz"
    np.savez(tests, x=np.full((9, side, side), top, np.float32), y=np.full(9, label))
    request = {
        "architecture": NETWORK,
        "activation": "maxmin",
        "held_out": 0.0,
        "report": {
            "normalization": None,
            "dataset": {"kind": "npz", "files": {"file": str(tests)}, "split": "test"},
            "selection": "all",
            "clip": True,
            "field": "test_dataset",
            **change,
        },
        "dataset": {
            "kind": "npz",
            "files": {"file": str(sorted_npz(tmp_path / "sorted.npz", 30))},
            "split": "test",
        },
        "bounds": {"max_bytes": 2**30, "max_samples": 1000},
    }
    if code is None:
        write_training_data(request, tmp_path)
        return
    with pytest.raises(DataError) as caught:
        write_training_data(request, tmp_path)
    assert (caught.value.code, caught.value.field) == (code, field)
    assert not (tmp_path / "facts.json").exists()


def test_only_what_was_held_out_may_be_certified_on() -> None:
    def spec(**choice: Any) -> Spec:
        return Spec.model_validate({"norm": "l2", "epsilons": [0.1], **choice})

    held = [3, 7, 20]
    assert held_samples(held, spec(samples="all")) == held
    assert held_samples(held, spec(samples=2)) == [3, 7]
    assert held_samples(held, spec(indices=[20, 3])) == [20, 3]
    with pytest.raises(InvalidInput) as caught:
        held_samples(held, spec(indices=[3, 8]))
    assert caught.value.code == "invalid_indices"


@pytest.mark.parametrize(
    ("limit", "certify", "code"),
    [
        (10**9, {"indices": [0, 1, 2, 3, 4, 5, 6]}, "invalid_indices"),
        (2 * 54 - 1, {}, "training_too_long"),
        (2 * 54, {}, None),
    ],
)
def test_what_would_fail_after_the_training_fails_before_it(
    corridor: Corridor, limit: int, certify: dict[str, Any], code: str | None
) -> None:
    data = sorted_npz(corridor.folder / "sorted.npz", 60)
    spec = TrainSpec(
        method="emma",
        dataset="mine",
        epsilon="0.1",  # type: ignore[arg-type]
        architecture=NETWORK,
        activation="maxmin",
        epochs=2,
        certify=certify,
    )
    source = DatasetSource(kind="npz", name="mine", blobs={"file": corridor.blob(data)})
    certification = certification_spec(spec)
    assert certification is not None
    submission = JobSubmission(
        id=new_job_id(),
        kind="train",
        spec=certification.normal(),
        model=None,
        dataset=source,
        training=plan_of(spec, "mine", held_out=0.1).normal(),
        training_dataset=source,
        created_at=rfc3339(now()),
    )
    assert corridor.ledger.create(submission)
    settings = corridor.settings.model_copy(update={"max_training_samples": limit})
    WorkLoop(settings, corridor.store, corridor.ledger, submission.id).work()
    outcome = corridor.outcome(submission)
    assert (outcome["error"] or {}).get("code") == code
    assert outcome["status"] == ("succeeded" if code is None else "failed")
    if code is None:
        report = corridor.store.read_json(corridor.store.report_path(submission.id))
        assert report is not None
        assert report["dataset"]["samples"] == 6
        left = {path.name for path in corridor.store.training_dir(submission.id).iterdir()}
        assert left == {"history.json", "trained.json"}
