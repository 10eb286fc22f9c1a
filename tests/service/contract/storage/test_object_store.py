"""Two hosts that share an S3-compatible store: a real S3 server (moto), a real worker, real HTTP.

Needs s3fs and moto[server], which do not go with the versions of requirements.lock: see
docs/operations.md. Without them these tests skip.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.contract.processes import python_module, spawn, wait_until
from service.contract.schemas.problems import InternalError, Unavailable
from service.contract.settings import Settings
from service.contract.storage.files import atomic_write
from service.contract.storage.mirror import Mirror
from service.contract.storage.store import Store
from tests.service.conftest import RedisServer
from tests.workers.jobs.conftest import tiny_npz, tiny_onnx

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
pytestmark = pytest.mark.filterwarnings("default")

URL = "s3://certserve-tests/some/prefix"
SPEC = {"norm": "l2", "epsilons": [0.05], "samples": 8, "attack": {"steps": 5}}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket on a server of its own; its name is in URL."""
    import s3fs

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    # What one server in this process holds, the next one holds too.
    httpx.post(f"http://{host}:{port}/moto-api/reset")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem(use_listings_cache=False).mkdir("certserve-tests")
    yield server
    server.stop()


def keys() -> list[str]:
    import s3fs

    found = s3fs.S3FileSystem(use_listings_cache=False).find("certserve-tests")
    return [key.removeprefix("certserve-tests/some/prefix/") for key in found]


def store_on(folder: Path) -> Store:
    return Store.of(Settings(data_dir=folder, store_url=URL))


@pytest.mark.usefixtures("bucket")
def test_what_is_created_once_is_created_once_among_hosts(tmp_path: Path) -> None:
    stores = [store_on(tmp_path / str(number)) for number in range(6)]
    job = "01M7Z6J1GFQJ85XQEA7XMD2XMY"
    for store in stores:
        store.job_dir(job)

    def conclude(number: int) -> bool:
        store = stores[number]
        return store.create_json(store.outcome_path(job, attempt=1), {"host": number})

    with ThreadPoolExecutor(len(stores)) as pool:
        created = list(pool.map(conclude, range(len(stores))))
    assert sum(created) == 1
    winner = {"host": created.index(True)}
    assert [store.read_json(store.outcome_path(job)) for store in stores] == [winner] * 6
    late = store_on(tmp_path / "late")
    assert late.read_json(late.outcome_path(job)) == winner


@pytest.mark.usefixtures("bucket")
def test_uploads_are_fetched_by_digest_and_checked(tmp_path: Path) -> None:
    here, there = store_on(tmp_path / "here"), store_on(tmp_path / "there")
    with here.writer(limit=10**7) as writer:
        writer.write(b"weights" * 100_000)
        digest = writer.publish().digest
    path = there.blob_path(digest)
    assert not path.exists()
    assert there.has(path)
    assert path.read_bytes() == b"weights" * 100_000
    damaged = here.blob_path(digest)
    damaged.write_bytes(b"other")
    here.share(damaged)
    path.unlink()
    with pytest.raises(InternalError, match="damaged"):
        there.has(path)
    assert not path.exists()
    assert not list((tmp_path / "there" / "tmp").iterdir())


@pytest.mark.usefixtures("bucket")
def test_a_retry_takes_results_away_from_every_host(tmp_path: Path) -> None:
    here, there = store_on(tmp_path / "here"), store_on(tmp_path / "there")
    job = "01M7Z6J1GFQJ85XQEA7XMD2XMY"
    for store in (here, there):
        store.job_dir(job)
        store.shards_dir(job).mkdir()
        store.prepared_dir(job).mkdir()
    for path in (there.shard_path(job, 0), there.prepared_dir(job) / "facts.json"):
        atomic_write(path, b"{}")
        there.share(path)
    assert here.has(here.shard_path(job, 0))
    assert here.bring(here.prepared_dir(job), ["facts.json"])
    here.clear_results(job)
    assert not there.has(there.shard_path(job, 0))
    assert not there.bring(there.prepared_dir(job), ["facts.json"])
    here.remove_job(job)
    assert keys() == []


def test_a_store_that_is_away_is_said_to_be(tmp_path: Path, bucket: Any) -> None:
    mirror = Mirror(URL, tmp_path)
    bucket.stop()
    with pytest.raises(Unavailable) as caught:
        mirror.push_once(tmp_path / "a", b"1")
    assert caught.value.code == "store_unavailable"


@pytest.mark.usefixtures("bucket")
def test_a_worker_on_another_host_certifies(
    tmp_path: Path,
    redis_server: RedisServer,
    serve: Callable[[Settings], httpx.Client],
    workers: Callable[[Path], None],
) -> None:
    """Nothing but Redis and the bucket is between the API's data directory and the workers'."""
    shared = {"redis_url": redis_server.url, "store_url": URL, "reconcile_interval_s": 1.0}
    api = serve(Settings(data_dir=tmp_path / "api", **shared))  # type: ignore[arg-type]
    alone = serve(Settings(data_dir=tmp_path / "api", **shared))  # type: ignore[arg-type]
    for name in ("one", "two"):
        workers(tmp_path / name)
    uploads = {
        "model": ("a.onnx", tiny_onnx(tmp_path / "a.onnx").read_bytes()),
        "dataset": ("a.npz", tiny_npz(tmp_path / "a.npz").read_bytes()),
    }
    job = api.post("/certify", data={"spec": json.dumps(SPEC)}, files=uploads).json()
    for _ in range(4):
        job = api.get(f"/jobs/{job['id']}", params={"wait": 30}).json()
    assert job["status"] == "succeeded", job
    report = alone.get(f"/jobs/{job['id']}/report").json()
    assert report["dataset"]["samples"] == 8
    assert len(alone.get(f"/jobs/{job['id']}/samples").json()["items"]) == 8
    assert not (tmp_path / "api" / "jobs" / job["id"] / "shards").exists()
    assert api.delete(f"/jobs/{job['id']}").status_code == 204
    assert not [key for key in keys() if key.startswith("jobs/")]


@pytest.fixture
def workers(redis_server: RedisServer) -> Iterator[Callable[[Path], None]]:
    """Starts worker processes, each on a data directory of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(data_dir: Path) -> None:
        environment = {
            **os.environ,
            "CERTSERVE_DATA_DIR": str(data_dir),
            "CERTSERVE_REDIS_URL": redis_server.url,
            "CERTSERVE_STORE_URL": URL,
            "CERTSERVE_SAMPLES_PER_SHARD": "2",
            "CERTSERVE_DEVICE": "cpu",
        }
        with data_dir.with_suffix(".log").open("wb") as log:
            command = python_module("workers.jobs.runtime.worker")
            started.append(spawn(command, environment=environment, log=log))

    yield start
    for process in started:
        process.terminate()
    assert wait_until(lambda: all(process.poll() is not None for process in started), 120)
