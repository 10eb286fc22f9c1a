"""Child processes that die with their parent, and pid files that identify a process for certain.

A pid file holds the process' start time beside its pid, because the system reuses pids.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["ProcessId", "die_with_parent", "end_process", "python_module", "spawn", "wait_until"]

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class ProcessId:
    """A process of this host: pid and start time (clock ticks since boot, from /proc)."""

    pid: int
    started: int
    host: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The identity of a running process; None if there is none (or only its zombie)."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()
        if fields[0] in "ZX":
            return None
        return cls(pid, int(fields[19]), socket.gethostname())

    @classmethod
    def read(cls, path: Path) -> ProcessId | None:
        """The content of a pid file, whether the process is alive or not."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Write the pid file (replaced as a whole)."""
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(self.__dict__))
        temporary.replace(path)

    @property
    def alive(self) -> bool:
        """Whether exactly this process still runs on this host."""
        return ProcessId.of(self.pid) == self


def die_with_parent(parent: int, sig: int = signal.SIGKILL) -> None:
    """Ask the kernel for ``sig`` when the parent (the thread that forked) dies.

    The parent may have died between fork and this call: then end at once.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(sig), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)


def spawn(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    log: IO[bytes] | int | None = None,
    pass_fds: Sequence[int] = (),
    parent_death_signal: int = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start a child in its own process group that the kernel ends when this process dies.

    Call it from the main thread: the death signal follows the thread that forked.
    """
    parent = os.getpid()
    return subprocess.Popen(
        list(arguments),
        env=None if environment is None else dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=tuple(pass_fds),
        process_group=0,
        preexec_fn=lambda: die_with_parent(parent, parent_death_signal),
    )


def wait_until(
    condition: Callable[[], bool], timeout_s: float, *, interval_s: float = 0.05
) -> bool:
    """Poll ``condition`` until it holds; False when the time is up."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_s)
    return True


def end_process(process: ProcessId, *, patience_s: float) -> bool:
    """SIGTERM, after ``patience_s`` SIGKILL; True when the process is gone."""
    for sig, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        if not process.alive:
            return True
        try:
            os.kill(process.pid, sig)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        if wait_until(lambda: not process.alive, wait_s):
            return True
    return not process.alive


def python_module(module: str, *arguments: str) -> list[str]:
    """The command line that runs ``module`` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]
