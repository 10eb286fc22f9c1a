"""Finding the service that runs here, and starting one for as long as a command needs it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.client import Client
from service.contract.processes import python_module, spawn
from service.supervisor.instance_lock import StartError, running_service

__all__ = ["started_service"]

#: A first start imports torch and may load a large append-only file.
START_S = 120.0


@contextmanager
def started_service(data_dir: Path, *, workers: int = 1) -> Iterator[str]:
    """The address of the service on ``data_dir``: one that runs already, else one started here.

    What was started here is stopped at the end, also after an exception; its output goes to
    ``log/service.log`` in the data directory. Raises StartError.
    """
    running = running_service(data_dir)
    if running is not None:
        yield running["url"]
        return
    log = data_dir / "log" / "service.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["--port", "0", "--data-dir", str(data_dir), "--workers", str(workers)]
    with log.open("ab") as output:
        process = spawn(
            python_module("service.cli.main", "serve", *arguments),
            environment=os.environ,
            log=output,
            parent_death_signal=signal.SIGTERM,
        )
    try:
        yield _await_ready(data_dir, process.poll, log)
    finally:
        process.terminate()
        process.wait()


def _await_ready(data_dir: Path, ended: object, log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if callable(ended) and ended() is not None:
            raise StartError(f"the service did not start:\n{_tail(log)}")
        running = running_service(data_dir)
        if running is not None:
            with Client(running["url"]) as client:
                if client.ready():
                    return running["url"]
        time.sleep(0.1)
    raise StartError(f"the service was not ready within {START_S:.0f} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
