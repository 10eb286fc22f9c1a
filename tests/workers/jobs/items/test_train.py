"""The item ``train``: it goes on where it stopped, and where it cannot, it begins anew."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import workers.jobs.items.train
import workers.jobs.runtime.lease_renewer
from service.contract.ledger.leases import Lease
from service.contract.schemas.submissions import JobSubmission
from tests.workers.jobs.conftest import Corridor
from tests.workers.jobs.work import EPOCHS, training
from workers.jobs.items.train import train_model
from workers.jobs.runtime.lease_renewer import ItemStopped, LeaseRenewer
from workers.jobs.work_loop import WorkLoop
from workers.training.loop import Paused

pytestmark = pytest.mark.usefixtures("forked_inspections")


def attempt(corridor: Corridor, job: JobSubmission, *, pause: bool = False) -> dict[str, Any]:
    return train_model(
        corridor.store,
        corridor.settings,
        job,
        progress=lambda done, total, message: None,
        stop=lambda: False,
        should_pause=lambda: pause,
    )


def test_a_checkpoint_that_cannot_be_read_costs_time_and_nothing_else(corridor: Corridor) -> None:
    whole = attempt(corridor, training(corridor))
    for damage in ("cut off", "other run", "none"):
        job, other = training(corridor), training(corridor)
        folder = corridor.store.training_dir(job.id)
        # What a reader on this host fetched from another one (``Store.read_json``) is in no one's
        # way.
        corridor.store.job_dir(job.id)
        folder.mkdir()
        corridor.store.write_json(folder / "history.json", {"history": []})
        with pytest.raises(Paused):
            attempt(corridor, job, pause=True)
        checkpoint = folder / "checkpoint.safetensors"
        if damage == "cut off":
            checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
        if damage == "other run":
            assert other.training is not None
            seeded = other.model_copy(update={"training": {**other.training, "seed": 5}})
            with pytest.raises(Paused):
                attempt(corridor, seeded, pause=True)
            corridor.store.training_dir(other.id).joinpath(checkpoint.name).replace(checkpoint)
        done = attempt(corridor, job)
        assert done["model"]["digest"] == whole["model"]["digest"], damage
        assert done["history"] == whole["history"], damage
        assert {path.name for path in folder.iterdir()} == {"history.json", "trained.json"}


def test_a_worker_that_is_told_to_stop_writes_a_checkpoint_first(
    corridor: Corridor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the third epoch is lost, although the next checkpoint is due in hours only."""
    monkeypatch.setattr(workers.jobs.runtime.lease_renewer, "GENTLE_S", 600.0)
    settings = corridor.settings.model_copy(update={"checkpoint_interval_s": 3600.0})
    job = training(corridor)

    def told(curve: object, rows: list[dict[str, Any]]) -> None:
        if len(rows) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(workers.jobs.items.train._Curve, "show", told)
        WorkLoop(settings, corridor.store, corridor.ledger, job.id).work()
    state = corridor.ledger.get(job.id)
    assert state is not None
    assert state.status == "running"
    before = state.progress
    assert before.unit == "steps"
    assert before.total is not None
    per_epoch = before.total // EPOCHS
    seen: list[tuple[int, int]] = []
    done = train_model(
        corridor.store,
        settings,
        job,
        progress=lambda done, total, message: seen.append((done, total)),
        stop=lambda: False,
        should_pause=lambda: False,
    )
    assert min(seen) > (3 * per_epoch, before.total)
    assert max(seen) == (before.total, before.total)
    assert len(done["history"]) == EPOCHS
    shown = corridor.store.read_json(corridor.store.training_dir(job.id) / "history.json")
    assert shown == {"history": done["history"]}


def test_a_worker_that_is_told_to_stop_while_it_reads_the_data_set_uses_up_no_try(
    corridor: Corridor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = training(corridor)

    def stopped(*_: object, **__: object) -> None:
        """The child is stopped and nothing is published."""
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(workers.jobs.items.train, "inspect_apart", stopped)
    WorkLoop(corridor.settings, corridor.store, corridor.ledger, job.id).work()
    key = f"certserve:job:{job.id}"
    assert corridor.redis.hget(key, "status") == "running"
    assert corridor.redis.hget(key, "last_error") is None
    assert corridor.redis.hget(f"{key}:tries", "train") == "0"


def test_what_is_compiled_lies_with_its_own_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"TORCHINDUCTOR_CACHE_DIR": "compiled", "TRITON_CACHE_DIR": "compiled/triton"}
    monkeypatch.setattr(workers.jobs.items.train, "_COMPILED", places)
    for name in places:
        monkeypatch.setenv(name, "of the job before")
    workers.jobs.items.train._compile_in(tmp_path)
    assert {name: os.environ[name] for name in places} == {
        name: str(tmp_path / place) for name, place in places.items()
    }


def test_an_item_that_does_not_stop_is_interrupted(
    corridor: Corridor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.jobs.runtime.lease_renewer, "GENTLE_S", 0.1)
    job = training(corridor)
    lease = corridor.ledger.lease(job.id, worker="w")
    assert isinstance(lease, Lease)
    renewer = LeaseRenewer(corridor.ledger, corridor.settings.lease_ttl_s)

    def deaf() -> None:
        with renewer.holding(lease), renewer.gently():
            os.kill(os.getpid(), signal.SIGTERM)
            assert renewer.should_stop()
            while True:
                time.sleep(0.01)

    with renewer, pytest.raises(ItemStopped):
        deaf()


def test_a_worker_that_is_killed_once_all_is_done_leaves_nothing_behind(
    corridor: Corridor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next try finds the result, and tidies up what the first one had left."""
    job = training(corridor)
    folder = corridor.store.training_dir(job.id)
    with monkeypatch.context() as killed:
        killed.setattr(workers.jobs.items.train, "_forget", lambda folder: None)
        done = attempt(corridor, job)
    assert (folder / "checkpoint.safetensors").exists()
    assert attempt(corridor, job) == done
    assert {path.name for path in folder.iterdir()} == {"history.json", "trained.json"}
