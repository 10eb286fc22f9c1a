"""The template: the process that work horses are forked from. It has imported every module.

A worker starts one and keeps it. It has no Redis address and no key, opens no file of the service,
touches no GPU and computes nothing, because it must have one thread when it forks. Each work horse
forks a second fork server before it reads its own environment (``work_horse.forked``), and that one
forks the inspections.
"""

from __future__ import annotations

import gc
import importlib
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import service
from service.contract.processes import die_with_parent
from workers.jobs.runtime.fork_server import ForkServer, serve

__all__ = ["command", "environment", "main", "start"]

#: The modules that a small job imports. scikit-learn is left out: only the built-in digits need it,
#: and importing it takes as long as all the others without torch.
IMPORTED = (
    "workers.jobs.runtime.work_horse",
    "workers.jobs.work_loop",
    "workers.jobs.inspection.child",
    "workers.jobs.inspection.training_data",
    "workers.jobs.datasets.arrays",
    "workers.jobs.datasets.layout",
    "workers.jobs.datasets.sources",
    "workers.jobs.items.shard",
    "workers.jobs.items.merge",
    "models.onnx.importer",
    "models.onnx.exporter.export",
    "models.checkpoints.state_dict",
    "workers.verification.cascade.parity",
)

#: Variables that libraries read when they are loaded. All others arrive after the fork or never.
KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD")
KEPT_PREFIXES = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "MALLOC_", "TORCH", "PYTORCH_")


def environment() -> Mapping[str, str]:
    """A template's environment: settings of libraries only, and one thread."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or name.startswith(KEPT_PREFIXES)
    }
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "HOME": "/nonexistent",
        "PYTHONPATH": str(Path(str(service.__file__)).resolve().parents[1]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def command(descriptor: int) -> list[str]:
    """The command line of a template that answers on the socket ``descriptor``."""
    module = ["-P", "-m", "workers.jobs.runtime.template"]
    return [sys.executable, *module, str(descriptor), str(os.getpid())]


def start() -> ForkServer:
    """Start one, from the main thread; it is ready some seconds later."""
    return ForkServer.start(command, environment())


def main() -> int:
    """Import, then fork on request until the worker is gone. Arguments: socket, parent's pid."""
    descriptor, parent = map(int, sys.argv[1:])
    die_with_parent(parent)
    for module in IMPORTED:
        importlib.import_module(module)
    os.register_at_fork(after_in_child=_reseed)
    # Freeze the objects that exist now, so that a child's garbage collector does not copy them.
    gc.collect()
    gc.freeze()
    serve(socket.socket(fileno=descriptor))
    return 0


def _reseed() -> None:
    """Give the child a NumPy seed of its own: all children would share the one of the import."""
    np.random.seed()


if __name__ == "__main__":
    sys.exit(main())
