"""Runs the inspection of an upload in a limited child process.

The child gets its own empty folder, a cleaned environment without the Redis address, limits on
address space, processor time, file size and open files, and cannot gain privileges. It sets the
limits itself before it opens an upload; up to then only our own code runs.

It is forked from a process that has imported everything and holds no secret (``fork_server``).
Where there is none, or it does not answer, it is started as a fresh interpreter. Both ways call the
same ``enter`` with the same limits.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import service
from service.contract.processes import die_with_parent
from workers.jobs.inspection.oom_kills import oom_kills
from workers.jobs.runtime.fork_server import Forked, ForkServer, ForkServerLost

__all__ = [
    "NO_ROOM",
    "ChildEnded",
    "ChildLimits",
    "enter",
    "fork_from",
    "forked",
    "found_no_room",
    "opens_uploads",
    "run_child",
]

logger = logging.getLogger(__name__)

PR_SET_NO_NEW_PRIVS = 38

#: What is kept of the child's error output.
TAIL_BYTES = 4096

#: What Python, C++, torch and the loader say when the address space is used up.
OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "allocate memory", "failed to map segment")

#: How native code ends where it does not look whether it got the memory that it asked for.
_CRASHES = (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT)

#: What a process sends to another one; no fault of a program's own ends it so.
_SENT = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT)

#: Processor time after the limit at which the kernel no longer asks: what ends with SIGKILL has
#: come so far only if it would not hear of SIGXCPU.
_LAST_S = 5

#: Address space that our own code takes once it is imported (0.82 GiB with torch 2.13), with room.
#: Under a smaller limit a crash before an upload is opened is the limit's doing.
OWN_BYTES = 2**30

#: Share of its address space beyond which a child that crashed is taken to have run out of it.
_CRAMPED = 0.875

#: The child's note that from now on it reads what was uploaded.
_OPENED = "opened"

#: Exit status of a child that found the disk full: it could not write a file that says so.
NO_ROOM = 4
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

#: Variables of the parent's environment that the child gets: paths, locale, compute threads.
_KEPT = (
    *("PATH", "LANG", "LC_ALL", "TZ"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
)

#: How often the parent looks whether it should stop the child.
POLL_S = 0.2

#: How long the fork server may take to be there: less than a fresh interpreter takes.
READY_S = 2.0

_forks: ForkServer | None = None


@dataclass(frozen=True)
class ChildLimits:
    """What the child may use."""

    memory_bytes: int = 12 * 2**30
    cpu_s: int = 600
    wall_s: float = 300.0
    file_bytes: int = 8 * 2**30
    open_files: int = 256


@dataclass(frozen=True)
class ChildEnded:
    """How the child ended: exit status (negative: signal), time-out, tail of its error output.

    no_room: little of its address space was left, or it had too little even for our own code.
    oom: the kernel killed a process for want of memory while it ran.
    """

    status: int
    timed_out: bool
    stopped: bool
    tail: str
    no_room: bool = False
    oom: bool = False

    @property
    def out_of_limits(self) -> bool:
        """Whether a limit ended it, and not a fault."""
        return (
            self.timed_out
            or self.status in (-signal.SIGXCPU, -signal.SIGXFSZ)
            or self.out_of_memory
            or any(sign in self.tail for sign in OUT_OF_MEMORY)
            or (self.no_room and self.status in _CRASHES)
        )

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel killed it because the machine, or the container, had no more memory,
        as far as its counter says."""
        return self.oom and self.status == -signal.SIGKILL

    @property
    def killed(self) -> bool:
        """Whether somebody else ended it: a signal, and no limit that explains it."""
        return self.status in _SENT and not self.stopped and not self.out_of_limits


def fork_from(forks: ForkServer) -> None:
    """Let all later children of this process come from ``forks``."""
    global _forks
    _forks = forks


def run_child(
    module: str,
    arguments: Sequence[str],
    *,
    folder: Path,
    limits: ChildLimits,
    stop: Callable[[], bool] = lambda: False,
    forks: ForkServer | None = None,
) -> ChildEnded:
    """Run ``main()`` of ``module`` in ``folder`` and wait; ``stop`` is asked every 0.2 s.

    ``main`` must call ``enter`` first. Error output goes to ``folder/stderr``. Forked from
    ``forks`` (or what ``fork_from`` named) if that answers, else ``python -m module``. Raises
    ForkServerLost when it dies under the child: the child's result is then unknown.
    """
    forks = forks or _forks
    child: Forked | subprocess.Popen[bytes] = (
        _fork(forks, module, arguments, folder, limits) if forks is not None else None
    ) or _start(module, arguments, folder, limits)
    kills, deadline = oom_kills(), time.monotonic() + limits.wall_s
    timed_out = stopped = False
    peak = 0
    try:
        while child.poll() is None:
            peak = max(peak, _peak_bytes(child.pid))
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
            _kill(child.pid)
        status = child.wait()
    cramped = peak > _CRAMPED * limits.memory_bytes
    unable = limits.memory_bytes < OWN_BYTES and not (folder / _OPENED).exists()
    tail, oom = _tail(folder / "stderr"), oom_kills() != kills
    return ChildEnded(status, timed_out, stopped, tail, cramped or unable, oom)


def opens_uploads(folder: Path) -> None:
    """The child's note, in its own ``folder``: what it does next depends on what was uploaded."""
    (folder / _OPENED).touch()


def _peak_bytes(pid: int) -> int:
    """The largest address space that a process has had so far; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmPeak:")]
    return 1024 * int(peaks[0]) if peaks else 0


def _start(
    module: str, arguments: Sequence[str], folder: Path, limits: ChildLimits
) -> subprocess.Popen[bytes]:
    """A fresh interpreter."""
    with (folder / "stderr").open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, *_parameters(os.getpid(), limits), *arguments],
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )


def _fork(
    forks: ForkServer, module: str, arguments: Sequence[str], folder: Path, limits: ChildLimits
) -> Forked | None:
    """A child of the fork server; None if it cannot have one."""
    (folder / "stderr").write_bytes(b"")
    try:
        if not forks.ready(READY_S):
            raise ForkServerLost("it is not ready")
        own = [module, *_parameters(forks.pid, limits), *arguments]
        environment = json.dumps(dict(_environment(folder)))
        return forks.fork("inspection", __name__, [str(folder), environment, *own])
    except ForkServerLost as error:
        logger.warning("the inspection starts as a fresh interpreter: %s", error)
        return None


def forked(arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    """In a new child of the fork server: set it up like a fresh interpreter, then call ``main``.

    It is alone in its session already, with nothing open but the standard descriptors.
    """
    folder, environment, *sys.argv = arguments
    os.chdir(folder)
    for target, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, "stderr", os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW),
    ):
        descriptor = os.open(path, flags)
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(json.loads(environment))
    tempfile.tempdir = None
    _use_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return int(importlib.import_module(sys.argv[0]).main())


def _use_threads(threads: int) -> None:
    """Set the child's compute threads; the template itself has one."""
    if threads > 1 and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _kill(pid: int) -> None:
    """Kill a child and what it started; the child alone while it has no group of its own yet."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)


def _parameters(parent: int, limits: ChildLimits) -> list[str]:
    """What ``enter`` reads."""
    return [str(parent), *(str(value) for value in asdict(limits).values())]


def enter(arguments: Sequence[str]) -> list[str]:
    """First call in the child: take on the limits; returns the module's own arguments."""
    parent, memory, cpu, _wall, file_size, open_files, *rest = arguments
    die_with_parent(int(parent))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS) failed")
    for what, value, more in (
        (resource.RLIMIT_AS, int(memory), 0),
        # With both limits alike the kernel sends SIGKILL, as anybody may.
        (resource.RLIMIT_CPU, int(cpu), _LAST_S),
        (resource.RLIMIT_FSIZE, int(file_size), 0),
        (resource.RLIMIT_NOFILE, int(open_files), 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = value + more if hard == resource.RLIM_INFINITY else min(value + more, hard)
        resource.setrlimit(what, (min(value, most), most))
    return rest


def found_no_room(error: BaseException) -> bool:
    """Whether a full disk is behind an exception, or behind those that it came from."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _NO_ROOM:
            return True
        # safetensors writes in Rust, whose errors arrive as text. No other text counts: an upload
        # could provoke it, and its job would wait for ever.
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
