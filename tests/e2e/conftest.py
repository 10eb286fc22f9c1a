"""A real service: supervisor, embedded Redis, API and workers as processes, spoken to over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.client import Client
from service.contract.processes import ProcessId, end_process, python_module, spawn, wait_until
from service.supervisor.instance_lock import running_service
from tests.horses import horses_of
from tests.workers.jobs.conftest import tiny_npz, tiny_onnx

#: Enough for a machine that does other things too; nobody waits so long where all is well.
START_S = 150.0
JOB_S = 300.0

#: Slow on purpose: every sample is attacked for a while, so that there is a middle to kill in.
SLOW_SPEC = {
    "norm": "l2",
    "epsilons": [0.05, 0.2],
    "samples": "all",
    "attack": {"steps": 400, "restarts": 1, "audit": 1.0, "seed": 0},
}
SAMPLES = 32


class LiveService:
    """One supervisor on one data directory; ``kill`` is SIGKILL, by pid."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        self.data_dir = data_dir
        self.environment = {
            **os.environ,
            "CERTSERVE_SAMPLES_PER_SHARD": "4",
            "CERTSERVE_LEASE_TTL_S": "5",
            "CERTSERVE_RECONCILE_INTERVAL_S": "1",
            "CERTSERVE_DEVICE": "cpu",
            # The same slow job is submitted again and again: it is to be computed every time.
            "CERTSERVE_REUSE_RESULTS": "false",
            **environment,
        }
        self.environment.pop("CERTSERVE_REDIS_URL", None)
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.log = data_dir.with_suffix(".log")

    @property
    def url(self) -> str:
        """Where the service listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, workers: int = 1) -> None:
        """Start (again, on the same port) and wait until the service is ready."""
        command = python_module("service.cli.main", "serve", "--port", str(self.port))
        command += ["--data-dir", str(self.data_dir), "--workers", str(workers)]
        with self.log.open("ab") as log:
            process = spawn(command, environment=self.environment, log=log)
        self.process = process

        def listening() -> bool:
            assert process.poll() is None, self.log.read_text()
            facts = running_service(self.data_dir)
            return facts is not None and int(facts["pid"]) == process.pid  # type: ignore[call-overload]

        assert wait_until(listening, START_S), self.log.read_text()
        facts = running_service(self.data_dir)
        assert facts is not None
        self.port = int(facts["url"].rpartition(":")[2])
        with Client(self.url) as client:
            assert wait_until(client.ready, START_S), self.log.read_text()

    def child(self, name: str) -> ProcessId:
        """The process id of ``redis``, ``api`` or ``worker-0``."""
        found = ProcessId.read(self.data_dir / "run" / f"child-{name}.pid")
        assert found is not None
        return found

    def horse(self) -> int:
        """The pid of the process that performs a ticket now."""
        worker = self.child("worker-0").pid
        assert wait_until(lambda: bool(horses_of(worker)), JOB_S)
        return horses_of(worker)[0]

    def kill(self, pid: int) -> None:
        """SIGKILL."""
        os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """SIGKILL of the supervisor; its children must follow without being asked."""
        assert self.process is not None
        names = ("redis", "api", "worker-0")
        children = [self.child(name) for name in names]
        self.process.kill()
        self.process.wait()
        for name, child in zip(names, children, strict=True):
            gone = wait_until(lambda c=child: not c.alive, 60)
            assert gone, f"{name} outlived its supervisor"

    def stop(self) -> None:
        """SIGTERM; the supervisor itself is patient with its children for half a minute."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture(scope="session")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny network and made-up images that it classifies right, mostly."""
    folder = tmp_path_factory.mktemp("uploads")
    model, data = tiny_onnx(folder / "tiny.onnx"), tiny_npz(folder / "tiny.npz", samples=SAMPLES)
    import onnxruntime

    with np.load(data) as arrays:
        x = arrays["x"]
    pixels = (x.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"x": pixels})
    np.savez(data, x=x, y=np.asarray(logits).argmax(1))
    return model, data


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[Callable[..., LiveService]]:
    """Makes services; whatever they started is ended afterwards."""
    made: list[LiveService] = []

    def make(name: str = "data", **environment: str) -> LiveService:
        made.append(LiveService(tmp_path / name, **environment))
        return made[-1]

    yield make
    for service in made:
        service.stop()
        for path in (service.data_dir / "run").glob("child-*.pid"):
            left = ProcessId.read(path)
            assert left is None or end_process(left, patience_s=1)


@pytest.fixture(scope="session")
def calm_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A service that lives as long as the tests; every one of its parts may be killed."""
    service = LiveService(tmp_path_factory.mktemp("calm") / "data")
    service.start()
    yield service
    service.stop()


@pytest.fixture(scope="session")
def calm_report(calm_service: LiveService, uploads: tuple[Path, Path]) -> dict[str, Any]:
    """The report of the slow job when nobody is killed."""
    return finished(calm_service, submit(calm_service, uploads))


def submit(service: LiveService, uploads: tuple[Path, Path]) -> str:
    """Submit the slow job; its id."""
    with Client(service.url) as client:
        return str(client.certify(*uploads, SLOW_SPEC)["id"])


def until_done(service: LiveService, job_id: str, samples: int) -> None:
    """Wait until some of the job is done, but not all of it."""
    with Client(service.url) as client:

        def some_done() -> bool:
            job = client.job(job_id)
            assert job["status"] in ("queued", "running"), job
            return bool(job["progress"]["done"] >= samples)

        assert wait_until(some_done, JOB_S)


def finished(service: LiveService, job_id: str) -> dict[str, Any]:
    """Follow the job to its end and return its report."""
    with Client(service.url) as client:
        job = client.wait(job_id, timeout_s=JOB_S)
        assert job["progress"]["done"] == job["progress"]["total"] == SAMPLES
        report: dict[str, Any] = json.loads(client.report(job_id))
        return report
