"""Shards put together are the rows of all samples, whatever their number."""

from __future__ import annotations

import numpy as np
import pytest

from tests.workers.jobs.conftest import Corridor, tiny_onnx
from workers.jobs.items.merge import concatenate, merge, merge_notes
from workers.jobs.items.prepare import prepare
from workers.jobs.items.shard import certify_shard
from workers.verification.results import SampleResults

pytestmark = pytest.mark.usefixtures("forked_inspections")


def part(start: int, count: int, **notes: object) -> SampleResults:
    flags = np.zeros((count, 2), dtype=bool)
    return SampleResults(
        index=np.arange(start, start + count),
        label=np.zeros(count, dtype=np.int64),
        prediction=np.zeros(count, dtype=np.int64),
        margin=np.ones(count),
        radius=np.ones(count),
        certified=flags,
        falsified=flags.copy(),
        method=["undecided"] * count,
        decided_by=[["undecided"] * 2] * count,
        counterexamples={"1,0": np.full(3, start, dtype=np.float32)},
        seconds={"forward": 1.0},
        notes=dict(notes),
    )


def test_rows_and_counterexamples_are_shifted() -> None:
    whole = concatenate([part(0, 3), part(3, 2), part(5, 4)])
    assert whole.index.tolist() == list(range(9))
    assert sorted(whole.counterexamples) == ["1,0", "4,0", "6,0"]
    assert whole.counterexamples["4,0"].tolist() == [3, 3, 3]
    assert whole.seconds == {"forward": 3.0}


@pytest.mark.parametrize(
    ("notes", "merged"),
    [
        ([{"n": 1}, {"n": 2}], {"n": 3}),
        ([{"d": 0.5}, {"d": 0.25}], {"d": 0.5}),
        ([{"b": False}, {"b": True}, {}], {"b": True}),
        ([{"t": "a"}, {"t": "a"}], {"t": "a"}),
        ([{"t": "a"}, {"t": "b"}], {"t": ["a", "b"]}),
        ([{"l": ["a"]}, {"l": ["b", "a"]}], {"l": ["a", "b"]}),
        ([{"m": {"n": 1}}, {"m": {"n": 1, "k": 2}}], {"m": {"n": 2, "k": 2}}),
        ([{"failure_probability": 1e-9}, {"failure_probability": 2e-9}], None),
    ],
)
def test_notes(notes: list[dict[str, object]], merged: dict[str, object] | None) -> None:
    if merged is None:
        assert merge_notes(notes)["failure_probability"] == pytest.approx(3e-9)
    else:
        assert merge_notes(notes) == merged


@pytest.mark.parametrize(("final", "dropped"), [("", None), ("Softmax", "Softmax")])
def test_the_report_tells_what_was_left_out_and_what_forward_passes_took(
    corridor: Corridor, final: str, dropped: str | None
) -> None:
    model = tiny_onnx(corridor.folder / "tiny.onnx", final=final)
    job = corridor.submit(model, samples=5)
    prepare(corridor.store, corridor.settings, job)
    certify_shard(corridor.store, corridor.settings, job, 0, progress=lambda done, message: None)
    merge(corridor.store, job, started_at=None)
    report = corridor.store.read_json(corridor.store.report_path(job.id))
    assert report is not None
    assert report["model"]["dropped_output"] == dropped
    assert report["timing"]["forward_s"] > 0
