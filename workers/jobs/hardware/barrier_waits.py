"""Compute threads spin at barriers while the machine is quiet, and sleep there while it is busy.

libgomp's threads spin for milliseconds at a barrier. Alone that is a third faster than to sleep,
because small tensors have thousands of barriers per second. Beside another busy process it is
several times slower: a spinning thread takes the processor from the one that it waits for.

libgomp itself hardly spins while it manages more threads than there are processors. So
the watcher keeps a team of idle threads once threads of this process wait for a processor, and
lets it go from time to time to see whether they still do. The number of threads that compute stays
as it is, and with it every result, bit for bit.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

__all__ = ["WATCHED", "IdleTeam", "can_watch", "waiting_s", "watch_barriers"]

#: What is watched: threads spin as long as libgomp's own do, and not at all, where that would spin
#: a hundred times, while it manages too many of them. (It has no name for the second number: it
#: is 0 where the policy is passive, and what else it would set is said beside it.)
WATCHED = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "300000"}

#: Seconds between two looks.
LOOK_S = 0.05
#: Seconds that the threads of this process wait for a processor, together, per second of spinning,
#: from which on the machine is busy: 0.05 without and 0.7 with one busy neighbour.
BUSY = 0.35
#: How long threads sleep at barriers before they try for one look what spinning does: at first,
#: and at most, each vain try doubling it.
RETRY_S, MAX_RETRY_S = 1.0, 4.0
#: Largest team of idle threads. It is as large as there are processors to spare; who has more of
#: them has room for neighbours.
MAX_IDLE = 128

_TASKS = Path("/proc/self/task")
_lock = threading.Lock()
_watcher: threading.Thread | None = None


def can_watch() -> bool:
    """Whether the kernel tells how long threads wait for a processor, and torch brings libgomp."""
    try:
        waiting_s()
    except (OSError, ValueError, IndexError):
        return False
    # Not imported: the library would read its settings.
    folders = [Path(entry) for entry in sys.path if entry]
    return any(next(folder.glob("torch/lib/libgomp*.so*"), None) for folder in folders)


def waiting_s() -> float:
    """Seconds that the living threads of this process have waited for a processor so far.

    Raises OSError where the kernel does not tell (``CONFIG_SCHED_INFO``).
    """
    waited = 0
    for task in os.listdir(_TASKS):
        try:
            waited += int((_TASKS / task / "schedstat").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            if not (_TASKS / task).exists():
                continue  # the thread has just ended
            raise
    return waited / 1e9


class IdleTeam:
    """``size`` idle threads of libgomp, until ``end``."""

    def __init__(self, library: ctypes.CDLL, size: int) -> None:
        self._library, self._size = library, size
        self._ready, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, name="idle-team", daemon=True)
        self._thread.start()
        self._ready.wait()

    def _hold(self) -> None:
        # Every thread of the team calls free(NULL), which does nothing. The team lives as long as
        # the thread that called it together.
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        self._library.GOMP_parallel(nothing, None, ctypes.c_uint(self._size), ctypes.c_uint(0))
        self._ready.set()
        self._over.wait()

    def end(self) -> None:
        """End the thread, and with it its team."""
        self._over.set()
        self._thread.join()


def watch_barriers(threads: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Start the watcher of this process, once; a daemon thread. Call it after torch is imported.

    threads: compute threads, as torch was told. Returns False where it is not needed or not
    possible: one compute thread, an operator's own ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT``, no
    libgomp, a kernel that does not tell.
    """
    global _watcher
    told = {name: environment[name] for name in WATCHED if name in environment}
    if threads < 2 or told not in ({}, WATCHED):
        return False
    with _lock:
        if _watcher is not None and _watcher.is_alive():
            return True
        library = _libgomp()
        if library is None or not can_watch():
            return False
        # One thread manages the team of ``threads``, another the idle one; both count once.
        size = max(2, library.omp_get_num_procs() - threads + 2)
        if size > MAX_IDLE:
            return False
        _watcher = threading.Thread(
            target=_watch, args=(library, size), name="barriers", daemon=True
        )
        _watcher.start()
    return True


def _libgomp() -> ctypes.CDLL | None:
    """The libgomp that this process has loaded."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.partition("/")[1] + line.partition("/")[2])
        if path.name.startswith("libgomp"):
            return ctypes.CDLL(str(path))
    return None


def _watch(library: ctypes.CDLL, size: int) -> None:
    """Look for ever; daemon threads end with their process."""
    retry_s = RETRY_S
    while True:
        while _share_waiting(LOOK_S) < BUSY:
            # One quiet look after a try: the next busy time is a new one.
            retry_s = RETRY_S
        team = IdleTeam(library, size)
        time.sleep(retry_s)
        team.end()
        retry_s = min(2 * retry_s, MAX_RETRY_S)


def _share_waiting(seconds: float) -> float:
    """Seconds that threads waited, per second, from now on; those that end in it do not count."""
    began, waited = time.perf_counter(), waiting_s()
    time.sleep(seconds)
    return (waiting_s() - waited) / (time.perf_counter() - began)
