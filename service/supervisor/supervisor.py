"""The supervisor behind ``certserve serve``: Redis, API and workers as children kept alive.

A child that dies is restarted after a pause that grows; SIGTERM or SIGINT stops everything in
order. One supervisor owns a data directory (flock): a new one ends the one before it and its
children. With CERTSERVE_REDIS_URL set no Redis is started; nothing else differs.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import redis

from service.contract.processes import (
    ProcessId,
    python_module,
    spawn,
    wait_until,
)
from service.contract.settings import Settings
from service.supervisor.embedded_redis import (
    RedisServerError,
    find_binary,
    repair,
    socket_path,
    write_configuration,
)
from service.supervisor.instance_lock import StartError, take_over

__all__ = ["Supervisor", "is_loopback"]

logger = logging.getLogger(__name__)

#: Longest time a Redis may take to load its append-only file.
REDIS_LOAD_S = 120.0
#: How long the children may take to stop, by kind, before they are killed.
PATIENCE_S = {"api": 5.0, "worker": 15.0, "redis": 10.0}
#: Pause before a restart: doubled from the first to the second value; forgotten after the third.
RESTART_FIRST_S, RESTART_MAX_S, RESTART_FORGET_S = 0.2, 10.0, 30.0


@dataclass
class Child:
    """One supervised process: how to start it and how often it died lately."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    deaths: int = 0
    restart_at: float = field(default=0.0)


class Supervisor:
    """Runs one service on one data directory until it is asked to stop."""

    def __init__(
        self, *, data_dir: Path, host: str, port: int, workers: int, settings: Settings
    ) -> None:
        self.data_dir = data_dir.resolve()
        self.host = host
        self.port = port
        self.workers = workers
        self.settings = settings
        self.children: list[Child] = []
        self._stop = False
        self._lock: int | None = None

    @property
    def run_dir(self) -> Path:
        """Sockets, process ids and ``service.json``."""
        return self.data_dir / "run"

    def run(self) -> int:
        """Start, supervise, stop; the exit status. Raises StartError or RedisServerError."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._request_stop)
        self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = take_over(self.data_dir, patience_s=sum(PATIENCE_S.values()))
        listener = self._listen()
        try:
            self._start(listener)
            while not self._stop:
                self._tend()
                time.sleep(0.1)
        finally:
            self._shut_down()
            listener.close()
        return 0

    def _request_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stop = True

    # -- starting -------------------------------------------------------------------------------

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.host, self.port))
        except OSError as error:
            listener.close()
            raise StartError(
                f"cannot listen on {self.host}:{self.port}: {error.strerror}"
            ) from error
        listener.listen(1024)
        self.port = listener.getsockname()[1]
        return listener

    def _start(self, listener: socket.socket) -> None:
        environment = {**os.environ, "CERTSERVE_DATA_DIR": str(self.data_dir)}
        if self.settings.redis_url is None:
            binary, path = find_binary(), socket_path(self.data_dir)
            configuration = write_configuration(self.data_dir, path)
            environment["CERTSERVE_REDIS_URL"] = f"unix://{path}"
            self._add("redis", lambda: self._start_redis(binary, configuration, path))
        self._add(
            "api",
            lambda: spawn(
                python_module("service.supervisor.api_process", str(listener.fileno())),
                environment=environment,
                pass_fds=[listener.fileno()],
            ),
        )
        for number in range(self.workers):
            self._add(
                f"worker-{number}",
                lambda: spawn(
                    python_module("workers.jobs.runtime.worker"), environment=environment
                ),
            )
        self._announce(environment)

    def _add(self, name: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        child = Child(name, start)
        self.children.append(child)
        self._launch(child)

    def _launch(self, child: Child) -> None:
        child.process = child.start()
        child.started_at = time.monotonic()
        identity = ProcessId.of(child.process.pid)
        if identity is not None:
            identity.write(self.run_dir / f"child-{child.name}.pid")
        logger.info("%s started (%d)", child.name, child.process.pid)

    def _start_redis(
        self, binary: Path, configuration: Path, path: Path
    ) -> subprocess.Popen[bytes]:
        """Start Redis and wait until it has loaded; repair a damaged append-only file once."""
        for attempt in range(2):
            path.unlink(missing_ok=True)
            (self.data_dir / "redis").mkdir(mode=0o700, exist_ok=True)
            process = spawn([str(binary), str(configuration)], parent_death_signal=signal.SIGTERM)
            identity = ProcessId.of(process.pid)
            if identity is not None:
                identity.write(self.run_dir / "child-redis.pid")
            client = redis.Redis(unix_socket_path=str(path), socket_timeout=1.0)
            ready = wait_until(
                lambda p=process, c=client: self._stop or p.poll() is not None or _answers(c),  # type: ignore[misc]
                REDIS_LOAD_S,
            )
            client.close()
            if ready and process.poll() is None:
                return process
            if process.poll() is None:
                process.kill()
            process.wait()
            if attempt == 0:
                repair(binary, self.data_dir)
        raise RedisServerError(f"Redis does not start; see {self.data_dir / 'log' / 'redis.log'}")

    def _announce(self, environment: Mapping[str, str]) -> None:
        """Tell local clients and workers where the service is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        facts = {
            "url": f"http://{host}:{self.port}",
            "redis_url": environment.get("CERTSERVE_REDIS_URL", self.settings.redis_url),
            "pid": os.getpid(),
        }
        temporary = self.run_dir / "service.json.new"
        temporary.write_text(json.dumps(facts))
        temporary.chmod(0o600)
        temporary.replace(self.run_dir / "service.json")
        logger.info("certserve listens on %s", facts["url"])

    # -- keeping alive and stopping -------------------------------------------------------------

    def _tend(self) -> None:
        """Start again what has died, each child after its own pause."""
        now = time.monotonic()
        for child in self.children:
            if child.process is not None:
                status = child.process.poll()
                if status is None:
                    continue
                if now - child.started_at > RESTART_FORGET_S:
                    child.deaths = 0
                pause = min(RESTART_MAX_S, RESTART_FIRST_S * 2**child.deaths)
                child.deaths += 1
                child.process, child.restart_at = None, now + pause
                logger.warning("%s ended (status %s), restart in %.1f s", child.name, status, pause)
            if now >= child.restart_at and not self._stop:
                try:
                    self._launch(child)
                except (OSError, RedisServerError) as error:
                    child.deaths += 1
                    child.restart_at = time.monotonic() + RESTART_MAX_S
                    logger.error("%s does not start: %s", child.name, error)

    def _shut_down(self) -> None:
        """Stop the API, then the workers (which give their items back), then Redis."""
        (self.run_dir / "service.json").unlink(missing_ok=True)
        for kind in ("api", "worker", "redis"):
            stopping = [
                child.process
                for child in self.children
                if child.name.startswith(kind) and child.process is not None
            ]
            for process in stopping:
                process.terminate()
            wait_until(lambda p=stopping: all(q.poll() is not None for q in p), PATIENCE_S[kind])  # type: ignore[misc]
            for process in stopping:
                process.kill()
                process.wait()
        for path in self.run_dir.glob("*.pid"):
            path.unlink(missing_ok=True)
        if self.settings.redis_url is None:
            shutil.rmtree(socket_path(self.data_dir).parent, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def is_loopback(host: str) -> bool:
    """Whether only this host can reach a server bound there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
