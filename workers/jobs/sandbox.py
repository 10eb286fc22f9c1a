"""Running the inspection of an upload in a child process that can hurt nobody but itself.

The child gets its own empty folder, a scrubbed environment without the Redis address, limits on
address space, processor time, file size and open files, and no way to new privileges. It limits
itself before it touches an upload: our own code up to that point needs no guard.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import service
from service.contract.processes import die_with_parent

__all__ = ["NO_ROOM", "ChildEnded", "Limits", "enter", "found_no_room", "run_child"]

PR_SET_NO_NEW_PRIVS = 38

#: What is kept of the child's error output.
TAIL_BYTES = 4096

#: What Python, C++, torch and the loader say when the address space is used up.
OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "allocate memory", "failed to map segment")

#: With this status a child says that the disk is full: a file that says so would find no room.
NO_ROOM = 4
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

#: What the child sees of the parent's environment: where and how, and its compute threads.
_KEPT = (
    *("PATH", "LANG", "LC_ALL", "TZ"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
)

#: How often the parent looks whether it should stop the child.
POLL_S = 0.2


@dataclass(frozen=True)
class Limits:
    """What the child may use."""

    memory_bytes: int = 12 * 2**30
    cpu_s: int = 600
    wall_s: float = 300.0
    file_bytes: int = 8 * 2**30
    open_files: int = 256


@dataclass(frozen=True)
class ChildEnded:
    """How the child ended: exit status (negative: signal), time over, tail of its error output."""

    status: int
    timed_out: bool
    stopped: bool
    tail: str

    @property
    def out_of_limits(self) -> bool:
        """Whether a limit ended it rather than a fault."""
        return (
            self.timed_out
            or self.status in (-signal.SIGXCPU, -signal.SIGXFSZ, -signal.SIGKILL)
            or any(sign in self.tail for sign in OUT_OF_MEMORY)
        )


def run_child(
    module: str,
    arguments: Sequence[str],
    *,
    folder: Path,
    limits: Limits,
    stop: Callable[[], bool] = lambda: False,
) -> ChildEnded:
    """Run ``python -m module`` in ``folder`` and wait; ``stop`` is asked every 0.2 s.

    The module must call ``enter`` first. Error output goes to ``folder/stderr``.
    """
    parameters = [str(os.getpid()), *(str(value) for value in asdict(limits).values())]
    with (folder / "stderr").open("wb") as errors:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *parameters, *arguments],
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )
    deadline = time.monotonic() + limits.wall_s
    timed_out = stopped = False
    try:
        while child.poll() is None:
            timed_out = time.monotonic() > deadline
            stopped = not timed_out and stop()
            if timed_out or stopped:
                break
            try:
                child.wait(POLL_S)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        status = child.wait()
    return ChildEnded(status, timed_out, stopped, _tail(folder / "stderr"))


def enter(arguments: Sequence[str]) -> list[str]:
    """First call in the child: take on the limits; returns the module's own arguments."""
    parent, memory, cpu, _wall, file_size, open_files, *rest = arguments
    die_with_parent(int(parent))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS) failed")
    for what, value in (
        (resource.RLIMIT_AS, int(memory)),
        (resource.RLIMIT_CPU, int(cpu)),
        (resource.RLIMIT_FSIZE, int(file_size)),
        (resource.RLIMIT_NOFILE, int(open_files)),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))
    return rest


def found_no_room(error: BaseException) -> bool:
    """Whether a full disk is behind an exception, or behind those that it came from."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _NO_ROOM:
            return True
        # safetensors writes in Rust, whose errors arrive as text. No other text counts: it may
        # be the upload's, whose job would wait for room for ever.
        rust = type(seen).__name__ == "SafetensorError"
        if rust and str(seen).endswith(tuple(f"(os error {number})" for number in _NO_ROOM)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _environment(folder: Path) -> Mapping[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    root = Path(str(service.__file__)).resolve().parents[1]
    return {
        **kept,
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        return file.read().decode("utf-8", "replace")
