"""How compute threads wait: asleep. A spinning one takes the processor from the one it waits for.

torch's OpenMP (libgomp, which MKL and oneDNN share inside it) lets a thread that has come to a
barrier spin for milliseconds. Beside one other busy process that is the time the last thread needs
to get there, and small tensors have thousands of barriers a second. The variables are read when the
library is loaded, so they must stand in the environment before torch is imported: a worker sets
them, and its work horses and their children inherit them. ONNX Runtime runs on one thread here, and
has no pool that could spin.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

__all__ = ["WAITING", "prepare_threads"]

#: Standard OpenMP; an operator's own setting wins (``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT``).
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}


def prepare_threads(
    threads: int, environment: MutableMapping[str, str] = os.environ
) -> MutableMapping[str, str]:
    """Set what is not set: ``threads`` compute threads, which sleep while they wait."""
    for name, value in {"OMP_NUM_THREADS": str(threads), **WAITING}.items():
        environment.setdefault(name, value)
    return environment
