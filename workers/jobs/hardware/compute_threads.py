"""How many compute threads there are, and how they wait for each other.

torch's OpenMP (libgomp, which MKL and oneDNN share inside it) lets a thread at a barrier spin for
milliseconds. On a busy machine that delays the very thread it waits for, and small tensors have
thousands of barriers per second. Where it can be watched (``barrier_waits``) threads spin as long
as the machine is quiet; elsewhere they always sleep. The variables are read when the library is
loaded, so they must be in the environment before torch is imported: a worker sets them, and its
work horses and their children inherit them. ONNX Runtime runs on one thread here, and has no pool
that could spin.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from workers.jobs.hardware.barrier_waits import WATCHED, can_watch

__all__ = ["SLEEPING", "prepare_threads"]

#: Standard OpenMP.
SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE"}


def prepare_threads(
    threads: int, environment: MutableMapping[str, str] = os.environ
) -> MutableMapping[str, str]:
    """Set the variables that are not set: ``threads`` compute threads, and how they wait.

    An operator's own word on how they wait (``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT``) stands alone.
    """
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    if not any(name in environment for name in WATCHED):
        environment.update(WATCHED if can_watch() else SLEEPING)
    return environment
