"""``certserve worker``: one more worker for a service that runs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from service.contract.processes import python_module
from service.contract.settings import Settings
from service.supervisor.instance_lock import StartError, running_service

__all__ = ["add_parser"]


def add_parser(commands: Any, data_dir: Path) -> None:
    """Add ``worker`` to the commands; ``data_dir`` is the default."""
    worker = commands.add_parser("worker", help="run one more worker for a service")
    worker.add_argument("--data-dir", type=Path, default=data_dir)
    worker.set_defaults(run=_worker)


def _worker(options: argparse.Namespace, console: Console) -> int:
    """Run a worker of CERTSERVE_REDIS_URL, else of the service on the data directory."""
    environment = {**os.environ, "CERTSERVE_DATA_DIR": str(options.data_dir.absolute())}
    if Settings().redis_url is None:
        running = running_service(options.data_dir)
        if running is None:
            raise StartError(
                f"no service runs on {options.data_dir}; set CERTSERVE_REDIS_URL or --data-dir"
            )
        environment["CERTSERVE_REDIS_URL"] = running["redis_url"]
    command = python_module("workers.jobs.runtime.worker")
    os.execve(command[0], command, environment)
