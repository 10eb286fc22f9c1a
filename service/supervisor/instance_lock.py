"""One supervisor owns a data directory: a lock, process ids, and where its service listens."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from pathlib import Path

from service.contract.processes import ProcessId, end_process, wait_until

__all__ = ["StartError", "running_service", "take_over"]

logger = logging.getLogger(__name__)


class StartError(RuntimeError):
    """The service cannot start; the message says why and what to do."""

    code = "start_failed"


def take_over(data_dir: Path, *, patience_s: float) -> int:
    """Become the only supervisor of ``data_dir``; the descriptor that holds its lock.

    Ends the supervisor before this one (which gets ``patience_s`` to stop in order) and every
    child that an earlier one left behind. Raises StartError where that is not possible.
    """
    run_dir = data_dir / "run"
    lock = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    own_file = run_dir / "supervisor.pid"
    if not _try_lock(lock):
        other = ProcessId.read(own_file)
        if other is not None and other.host != socket.gethostname():
            raise StartError(f"{data_dir} is in use by a service on host {other.host}")
        if other is not None and other.alive:
            logger.warning("ending the service that runs on this data directory (%s)", other.pid)
            end_process(other, patience_s=patience_s)
        if not wait_until(lambda: _try_lock(lock), 10.0):
            raise StartError(f"{data_dir} is in use by a process that cannot be ended")
    for path in run_dir.glob("child-*.pid"):
        left = ProcessId.read(path)
        if left is not None and left.alive:
            logger.warning("ending %s (%d), left by an earlier service", path.stem, left.pid)
            if not end_process(left, patience_s=3.0):
                raise StartError(f"process {left.pid} of an earlier service cannot be ended")
        path.unlink(missing_ok=True)
    me = ProcessId.of(os.getpid())
    assert me is not None
    me.write(own_file)
    return lock


def running_service(data_dir: Path) -> dict[str, str] | None:
    """url and redis_url of the service that runs on this data directory, if one does."""
    run_dir = data_dir.resolve() / "run"
    supervisor = ProcessId.read(run_dir / "supervisor.pid")
    if supervisor is None or not supervisor.alive:
        return None
    try:
        facts: dict[str, str] = json.loads((run_dir / "service.json").read_text())
    except (OSError, ValueError):
        return None
    return facts


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
