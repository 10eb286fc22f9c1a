"""A service in pieces: Redis, API and workers as processes that the test starts and kills."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType

from redis import Redis

from service.client import Client
from service.contract.processes import python_module, spawn, wait_until
from service.supervisor.embedded_redis import find_binary, socket_path, write_configuration
from tests.horses import horses_of, template_of

START_S = 150.0


class Rig:
    """One data directory with everything that works on it; ``with`` starts and ends it.

    Nobody supervises: what is killed stays dead until ``restart``. To be used by the main thread,
    as the children die with the thread that started them.
    """

    def __init__(self, data_dir: Path, workers: int) -> None:
        self.data_dir = data_dir
        self.workers = workers
        self.log = data_dir.with_suffix(".log")
        self.parts: dict[str, subprocess.Popen[bytes]] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._socket = socket_path(data_dir)
        (data_dir / "run").mkdir(parents=True, exist_ok=True)
        self._configuration = write_configuration(data_dir, self._socket)
        self._environment = {
            **os.environ,
            "CERTSERVE_DATA_DIR": str(data_dir),
            "CERTSERVE_REDIS_URL": f"unix://{self._socket}",
            "CERTSERVE_DEVICE": "cpu",
            "CERTSERVE_SAMPLES_PER_SHARD": "8",
            "CERTSERVE_LEASE_TTL_S": "4",
            "CERTSERVE_RECONCILE_INTERVAL_S": "1",
            "CERTSERVE_WORKER_TTL_S": "5",
            # A kill from outside is not the item's fault: three of them must not end a job here.
            "CERTSERVE_MAX_ATTEMPTS": "30",
            "CERTSERVE_REUSE_RESULTS": "false",
            "OMP_NUM_THREADS": "1",
        }

    @property
    def names(self) -> list[str]:
        """All parts, in the order in which they are started."""
        return ["redis", "api", *(f"worker-{number}" for number in range(self.workers))]

    def __enter__(self) -> Rig:
        for name in self.names:
            self.restart(name)
        self.until_ready()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in reversed(self.names):
            self.kill(name)
        self._listener.close()

    def redis(self) -> Redis:
        """A client of the rig's Redis."""
        return Redis(unix_socket_path=str(self._socket), decode_responses=True)

    def until_ready(self) -> None:
        """Wait until the service says that it can work."""
        with Client(self.url) as client:
            assert wait_until(client.ready, START_S), self.log.read_text()[-5000:]

    def restart(self, name: str) -> None:
        """Start a part that is not there."""
        descriptors = []
        if name == "redis":
            self._socket.unlink(missing_ok=True)
            command = [str(find_binary()), str(self._configuration)]
        elif name == "api":
            descriptors = [self._listener.fileno()]
            command = python_module("service.supervisor.api_process", str(descriptors[0]))
        else:
            command = python_module("workers.jobs.runtime.worker")
        with self.log.open("ab") as log:
            self.parts[name] = spawn(
                command, environment=self._environment, log=log, pass_fds=descriptors
            )

    def kill(self, name: str) -> None:
        """SIGKILL, if it is there."""
        process = self.parts.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()

    def kill_work_horse(self, chance: random.Random) -> bool:
        """SIGKILL of a horse or of what horses are forked from, its worker stays.

        A template may still import, which takes long beside everything else here. Says whether
        there was one to kill.
        """
        found: list[int] = []
        for name, process in self.parts.items():
            if name.startswith("worker"):
                template = template_of(process.pid)
                found += horses_of(process.pid) * 3 + ([] if template is None else [template])
        if not found:
            return False
        try:
            os.kill(chance.choice(found), 9)
        except ProcessLookupError:
            return False
        return True

    def tend(self) -> list[str]:
        """Start again what ended by itself (a worker that lost its Redis); its names."""
        ended = [name for name, process in self.parts.items() if process.poll() is not None]
        for name in ended:
            self.restart(name)
        return ended


class Monkey:
    """Kills parts of a rig at random moments and starts them again a little later.

    ``posting`` is set while a submission is under way: the API dies in the middle of one.
    """

    def __init__(self, rig: Rig, seed: int, posting: threading.Event) -> None:
        self._rig = rig
        self._posting = posting
        self._chance = random.Random(seed)
        self._restart_at: dict[str, float] = {}
        #: What was killed how often.
        self.killed: dict[str, int] = {}

    def rage(self, seconds: float) -> None:
        """Kill for so long; afterwards every part runs again."""
        chance, end = self._chance, time.monotonic() + seconds
        next_kill = time.monotonic()
        while time.monotonic() < end:
            now = time.monotonic()
            for name in [name for name, at in self._restart_at.items() if at <= now]:
                del self._restart_at[name]
                self._rig.restart(name)
            self._rig.tend()
            if now >= next_kill:
                self._kill_something()
                next_kill = now + chance.uniform(0.3, 2.5)
            time.sleep(0.02)
        for name in self._restart_at:
            self._rig.restart(name)
        self._restart_at.clear()

    def _kill_something(self) -> None:
        chance = self._chance
        kind = chance.choices(["worker", "horse", "api", "redis"], [4, 3, 3, 2])[0]
        if kind == "horse":
            if self._rig.kill_work_horse(chance):
                self.killed["horse"] = self.killed.get("horse", 0) + 1
            return
        there = [name for name in self._rig.parts if name.startswith(kind)]
        if there:
            name = chance.choice(there)
            if kind == "api" and self._posting.wait(2.0):
                # In the middle of a submission: before, while or after it is journalled.
                time.sleep(chance.uniform(0.0, 0.03))
            self._rig.kill(name)
            self.killed[kind] = self.killed.get(kind, 0) + 1
            # Mostly at once, now and then after a while in which the others stand alone.
            self._restart_at[name] = time.monotonic() + chance.choice([0.0, 0.5, 1.0, 4.0])
