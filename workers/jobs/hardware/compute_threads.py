"""Lets compute threads sleep while they wait. A spinning thread takes the processor from others.

torch's OpenMP (libgomp, which MKL and oneDNN share inside it) lets a thread at a barrier spin for
milliseconds. On a busy machine that delays the very thread it waits for, and small tensors have
thousands of barriers per second. The variables are read when the library is loaded, so they must be
in the environment before torch is imported: a worker sets them, and its work horses and their
children inherit them. ONNX Runtime runs on one thread here, and has no pool that could spin.
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
    """Set the variables that are not set: ``threads`` compute threads that sleep at barriers."""
    for name, value in {"OMP_NUM_THREADS": str(threads), **WAITING}.items():
        environment.setdefault(name, value)
    return environment
