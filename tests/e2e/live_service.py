"""A service of its own processes that a test starts, kills and speaks to over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from service.client import Client
from service.contract.processes import ProcessId, end_process, python_module, spawn, wait_until
from service.supervisor.instance_lock import running_service
from tests.horses import horses_of

__all__ = [
    "JOB_S",
    "SAMPLES",
    "SLOW_SPEC",
    "START_S",
    "LiveService",
    "finished",
    "submit",
    "until_done",
]

#: Enough for a machine that does other things too; nobody waits so long where all is well.
START_S = 150.0
JOB_S = 300.0

#: Slow on purpose: every sample is attacked for a while, so that there is a middle to kill in.
SLOW_SPEC = {
    "norm": "l2",
    "epsilons": [0.05, 0.2],
    "samples": "all",
    "attack": {"steps": 200, "restarts": 1, "audit": 1.0, "seed": 0},
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

    @property
    def runs(self) -> bool:
        """Whether its supervisor was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def child(self, name: str) -> ProcessId:
        """The process id of ``redis``, ``api`` or ``worker-0``."""
        found = ProcessId.read(self.data_dir / "run" / f"child-{name}.pid")
        assert found is not None
        return found

    def horse(self) -> int:
        """The pid of the process that performs a wake-up job now."""
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
        if self.process is not None and self.runs:
            self.process.terminate()
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def close(self) -> None:
        """Stop, and end whatever was left."""
        self.stop()
        for path in (self.data_dir / "run").glob("child-*.pid"):
            left = ProcessId.read(path)
            assert left is None or end_process(left, patience_s=1)


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
