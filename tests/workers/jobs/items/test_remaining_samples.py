"""Cascades in training: a stage learns what none before it certifies, whatever stops it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from models.onnx.exporter.export import export_onnx
from models.onnx.importer import read_onnx_bytes
from service.contract.schemas.problems import InvalidInput
from service.contract.schemas.submissions import DatasetSource, JobSubmission, Spec
from service.contract.sweeps import runs_of
from tests.extent import part
from tests.workers.jobs.conftest import Corridor
from tests.workers.jobs.work import training, work
from tests.workers.verification.certification import certify
from workers.jobs.items.merge import merge, merge_cascade
from workers.jobs.items.prepare import prepare
from workers.jobs.items.remaining_samples import PART, _method
from workers.jobs.items.shard import certify_shard
from workers.jobs.items.sweep import train_runs
from workers.jobs.items.train import read_samples
from workers.jobs.items.trained_model import model_of, trained
from workers.jobs.items.training_run import config_of
from workers.training.data import TrainingData, pixels
from workers.training.loop import Paused, train

pytestmark = pytest.mark.usefixtures("forked_inspections")

EPSILON = "1/50"


class Killed(Exception):
    """The worker's end, as far as what is on disk goes."""


def cascade(corridor: Corridor, *, stages: int = 2, **changes: Any) -> JobSubmission:
    """A cascade on the digits, of dense networks."""
    return training(
        corridor,
        method="cap",
        epsilon=EPSILON,
        architecture={
            "input": [1, 8, 8],
            "layers": [
                {"kind": "flatten"},
                {"kind": "linear", "out": 12},
                {"kind": "relu"},
                {"kind": "linear", "out": 10},
            ],
        },
        recipe={"options": {"cascade_stages": stages, "projections": 0}, "learning_rate": 0.02},
        **{"epochs": 4, "batch_size": 100, **changes},
    )


def attempt(
    corridor: Corridor,
    job: JobSubmission,
    said: list[str],
    *,
    killed: str = "none",
    paused: str = "none",
) -> list[str]:
    def progress(done: int, total: int, message: str) -> None:
        said.append(message)
        assert 0 <= done <= total
        if killed in message:
            raise Killed

    return train_runs(
        corridor.store,
        corridor.settings,
        job,
        progress=progress,
        on_checkpoint=lambda: None,
        stop=lambda: False,
        should_pause=lambda: bool(said) and paused in said[-1],
    ).split()


def samples(corridor: Corridor, job: JobSubmission) -> TrainingData:
    read: Callable[..., tuple[TrainingData, dict[str, Any]]] = read_samples
    folder = corridor.folder / "again"
    return read(corridor.store, corridor.settings, job, folder, stop=lambda: False)[0]


def test_a_stage_is_trained_on_what_the_one_before_does_not_certify_whatever_stops_it(
    corridor: Corridor,
) -> None:
    job = cascade(corridor)
    first, second = runs_of(job)
    kept = corridor.store.training_dir(first.id) / "certified.json"
    with pytest.raises(Paused):
        attempt(corridor, job, [], paused=f"certifying the training samples, {PART + 60} of")
    assert (corridor.store.read_json(kept) or {})["done"] == PART
    with pytest.raises(Killed):
        attempt(corridor, job, [], killed=f"certifying the training samples, {2 * PART + 60} of")
    assert (corridor.store.read_json(kept) or {})["done"] == 2 * PART
    said: list[str] = []
    with pytest.raises(Paused):
        attempt(corridor, job, said, paused="(2 of 2): epoch 2")
    assert not any("(1 of 2)" in message for message in said)
    moment = kept.stat().st_mtime_ns
    said.clear()
    digests = attempt(corridor, job, said)
    assert kept.stat().st_mtime_ns == moment
    assert all("(2 of 2)" in message for message in said)

    onnx = corridor.store.blob_path(model_of(corridor.store, first).digest).read_bytes()
    data = samples(corridor, job)
    found = certify(
        read_onnx_bytes(onnx).network,
        pixels(data.x).numpy(),
        (EPSILON,),
        norm="linf",
        method="cap",
        radius=False,
        attack=None,
    )
    certified = found.certified[:, 0]
    # Of a wrong prediction too: the stage will answer it.
    assert (certified & (found.prediction != data.y.numpy())).any()
    told = trained(corridor.store, second.id)
    assert told is not None
    assert 0 < told["samples"] == (~certified).sum() < len(data.x)
    rest = torch.from_numpy(~certified)
    plan = second.training or {}
    assert plan["seed"] != (first.training or {})["seed"]
    network, _ = train(
        config_of(plan), TrainingData(data.x[rest], data.y[rest]), device=torch.device("cpu")
    )
    alone = hashlib.sha256(export_onnx(network.deployed())).hexdigest()
    assert digests[1] == f"sha256:{alone}"
    assert not list(corridor.store.training_dir(second.id).glob("data*"))


def test_a_cascade_ends_where_too_few_samples_are_left(corridor: Corridor) -> None:
    job = cascade(corridor, stages=3, batch_size=1400, epochs=30)
    (digest,) = attempt(corridor, job, [])
    runs = runs_of(job)
    ends = [corridor.store.read_json(corridor.store.failure_path(run.id)) for run in runs]
    assert ends[0] is None
    for end in ends[1:]:
        assert end is not None
        assert end["code"] == "cascade_ended"
        assert "fewer than a batch of 1400" in end["detail"]
    assert attempt(corridor, job, []) == [digest]
    # Without a certification there is nothing to tell of the whole.
    work(corridor, job.id)
    assert corridor.outcome(job)["status"] == "succeeded"
    assert not corridor.store.report_path(job.id).exists()


@pytest.mark.parametrize(
    ("changed", "labelled"),
    part(list(itertools.product(("nothing", "the samples", "the labels"), (True, False))), 0, 3, 4),
)
def test_stages_that_met_other_samples_come_to_nothing_together(
    corridor: Corridor, changed: str, labelled: bool
) -> None:
    """A registered data set is replaced while a cancelled job waits for its retry."""
    file = corridor.folder / "registered.npz"
    rng = np.random.default_rng(0)
    x, y = rng.random((16, 1, 8, 8), dtype=np.float32), rng.integers(0, 10, 16)

    def register(x: Any, y: Any) -> None:
        np.savez(file, x=x, **({"y": y} if labelled else {}))

    register(x, y)
    spec = Spec.model_validate(
        {"norm": "linf", "epsilons": [EPSILON], "method": "ibp", "radius": False, "attack": None}
    )
    source = DatasetSource(kind="npz", name="registered", split="test", paths={"file": str(file)})
    job = cascade(corridor).model_copy(update={"spec": spec.normal(), "dataset": source})
    attempt(corridor, job, [])
    runs = runs_of(job)
    store, settings = corridor.store, corridor.settings
    for run in runs:
        prepare(store, settings, run)
        for shard in range(2):
            certify_shard(store, settings, run, shard, progress=lambda *_: None)
        merge(store, run, started_at=None)
        register(
            *{"nothing": (x, y), "the samples": (x[::-1], y), "the labels": (x, y[::-1])}[changed]
        )
    if changed == "nothing" or (changed == "the labels" and not labelled):
        merge_cascade(store, job, runs)
        assert (store.read_json(store.report_path(job.id)) or {})["samples"] == 16
        return
    with pytest.raises(InvalidInput) as caught:
        merge_cascade(store, job, runs)
    assert caught.value.code == "dataset_changed"
    assert not store.report_path(job.id).exists()


@pytest.mark.parametrize(
    ("asked", "used"),
    [("auto", "cap"), ("milp", "cap"), ("crown-ball", "cap"), ("ibp", "ibp"), ("crown", "crown")],
)
def test_dear_methods_are_left_to_the_report(asked: str, used: str) -> None:
    assert _method({"method": asked}) == used
    assert _method({}) == "cap"
