"""Retention removes what nobody needs, and nothing that somebody does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from service.contract.ids import new_job_id
from service.contract.ledger.ledger import Ledger
from service.contract.outcomes import conclude
from service.contract.settings import Settings
from service.contract.storage.journal import Journal
from service.contract.storage.store import Store
from service.jobs.retention import Retention
from tests.service.conftest import eventually

HOUR_S = 3600.0


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "reconcile_interval_s": 0.05,
            # The tests sweep when they are ready for it.
            "sweep_interval_s": HOUR_S,
            "upload_grace_s": HOUR_S,
            "retention_days": 1.0,
        }
    )


@pytest.fixture
def sweep(settings: Settings, store: Store, ledger: Ledger) -> Iterator[Callable[..., None]]:
    """One sweep, over when it returns; keywords change its settings."""
    journal = Journal(store.folder("journal"))

    def run(**changes: object) -> None:
        Retention(settings.model_copy(update=changes), store, ledger, journal).run()

    yield run
    journal.close()


def onnx(number: int) -> bytes:
    return bytes([8, 8, 0x3A, 0, 8, number])


def submit(api: httpx.Client, number: int, **form: Any) -> dict[str, Any]:
    files = {
        "model": ("n.onnx", onnx(number)),
        "dataset_id": (None, "digits"),
        "spec": (None, '{"norm": "l2", "epsilons": [0.5]}'),
    }
    answer = api.post("/certify", files={**files, **form})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def age(store: Store, seconds: float) -> None:
    """Make every upload and job folder that much older."""
    then = time.time() - seconds
    for folder in ("models", "datasets", "blobs", "jobs"):
        for path in [*(store.data_dir / folder).rglob("*")]:
            os.utime(path, (then, then))


def end(store: Store, ledger: Ledger, job_id: str, status: Any = "cancelled") -> None:
    state = ledger.get(job_id)
    assert state is not None
    conclude(store, ledger, state.submission, status)


def blob(store: Store, number: int) -> Path:
    import hashlib

    return store.blob_path("sha256:" + hashlib.sha256(onnx(number)).hexdigest())


def test_uploads_go_with_the_last_job_that_needs_them(
    api: httpx.Client, store: Store, ledger: Ledger, sweep: Callable[..., None]
) -> None:
    gone, needed, young = submit(api, 1), submit(api, 2), submit(api, 3)
    explicit = api.post("/models", files={"model": ("n.onnx", onnx(4))}).json()["id"]
    for job in (gone, young):
        end(store, ledger, job["id"])
        assert api.delete(f"/jobs/{job['id']}").status_code == 204
    age(store, 2 * HOUR_S)
    os.utime(blob(store, 3))
    store.touch("models", young["model_id"])
    sweep()
    assert not blob(store, 1).exists()
    assert api.get(f"/models/{gone['model_id']}").status_code == 404
    assert blob(store, 2).exists()  # an active job needs it
    assert blob(store, 3).exists()  # used a moment ago
    assert api.get(f"/models/{needed['model_id']}/onnx").content == onnx(2)
    assert api.get(f"/models/{young['model_id']}").status_code == 200
    assert api.get(f"/models/{explicit}").status_code == 200  # it has a day
    age(store, 25 * HOUR_S)
    sweep()
    assert not blob(store, 4).exists()
    assert api.get(f"/models/{explicit}").status_code == 404
    assert blob(store, 2).exists()


def test_jobs_end_after_their_days_but_active_ones_never(
    api: httpx.Client, store: Store, ledger: Ledger, redis: Redis, sweep: Callable[..., None]
) -> None:
    ended, active = submit(api, 1), submit(api, 2)
    end(store, ledger, ended["id"])
    sweep()
    assert api.get(f"/jobs/{ended['id']}").status_code == 200  # it has a day
    sweep(retention_days=0.0)
    assert api.get(f"/jobs/{ended['id']}").status_code == 404
    assert not (store.data_dir / "jobs" / ended["id"]).exists()
    redis.flushall()
    eventually(ledger.memory.complete)
    assert [row["id"] for row in api.get("/jobs").json()["items"]] == [active["id"]]


def test_folders_that_stragglers_left_go_after_a_while(
    settings: Settings, serve: Callable[[Settings], httpx.Client], store: Store
) -> None:
    """Also: the API sweeps by itself, now and then."""
    serve(settings.model_copy(update={"sweep_interval_s": 0.1}))
    left = store.job_dir(new_job_id())
    fresh = store.job_dir(new_job_id())
    os.utime(left, (0, 0))
    eventually(lambda: not left.exists())
    assert fresh.exists()


def test_a_rewritten_model_stays_as_long_as_its_job(
    api: httpx.Client, store: Store, ledger: Ledger, sweep: Callable[..., None]
) -> None:
    """It is told by what was prepared alone; while that is not there, there is none."""
    spec = '{"norm": "l2", "epsilons": [0.5], "summation": "partial-sums"}'
    job = submit(api, 1, spec=(None, spec))["id"]
    assert api.get(f"/jobs/{job}").json()["links"]["rewritten"] is None
    with store.writer(limit=100) as writer:
        writer.write(onnx(8))
        model = writer.publish().digest
    record = {"id": model, "format": "onnx", "name": "m", "size": 6}
    store.put_record("models", model, {**record, "created_at": "2026-01-01T00:00:00Z"}, own=False)
    store.prepared_dir(job).mkdir(parents=True)
    store.write_json(store.prepared_dir(job) / "facts.json", {"rewritten": record})
    end(store, ledger, job, "failed")
    age(store, 2 * HOUR_S)
    sweep()
    shown = api.get(f"/jobs/{job}").json()
    assert shown["model_id"] != model
    assert shown["links"]["rewritten"] == f"/models/{model}/onnx"
    assert api.get(shown["links"]["rewritten"]).content == onnx(8)
    assert api.delete(f"/jobs/{job}").status_code == 204
    age(store, 2 * HOUR_S)
    sweep()
    assert not store.blob_path(model).exists()
    assert api.get(f"/models/{model}").status_code == 404


def test_a_trained_model_stays_while_it_is_certified(
    api: httpx.Client, store: Store, ledger: Ledger, sweep: Callable[..., None]
) -> None:
    """No job names it yet; a certification may take longer than an upload's grace."""
    wish = {"method": "standard", "dataset": "digits", "epsilon": 1, "recipe": {}}
    wish |= {"architecture": {"name": "orthogonal-dense"}}
    job = api.post("/train", json=wish).json()["id"]
    digests = []
    for number in (8, 9):
        with store.writer(limit=100) as writer:
            writer.write(onnx(number))
            digests.append(writer.publish().digest)
    model, weights = digests
    record = {"id": model, "format": "onnx", "name": "m", "size": 6, "files": {"weights": weights}}
    record["created_at"] = "2026-01-01T00:00:00Z"
    store.put_record("models", model, record, own=False)
    store.training_dir(job).mkdir(parents=True)
    found = {"model": {"digest": model, "format": "onnx", "name": "m", "size": 6}}
    store.create_json(store.training_dir(job) / "trained.json", found)
    age(store, 2 * HOUR_S)
    with store.writer(limit=100) as writer:
        writer.write(onnx(7))
        nobodys = writer.publish().digest
    os.utime(store.blob_path(nobodys), (0, 0))
    sweep()
    assert not store.blob_path(nobodys).exists()
    assert api.get(f"/models/{model}/onnx").content == onnx(8)
    assert api.get(f"/models/{model}/weights").content == onnx(9)
    # A certification that fails takes nothing away: the job names what it trained.
    end(store, ledger, job, "failed")
    assert api.get(f"/jobs/{job}").json()["model_id"] == model
