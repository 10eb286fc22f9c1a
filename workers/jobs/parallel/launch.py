"""Trains on several devices: starts one process for each, watches them, and ends them.

The work horse itself computes nothing meanwhile, so it is always there to notice a rank that ended,
a cancellation or a stop. The ranks are fresh interpreters (nothing is forked after CUDA was
touched), and the kernel ends them with the work horse. A run that lost a rank is tried again from
its checkpoint, like every item whose worker died.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import torch

import service
from models.network import Network
from workers.jobs.hardware.compute_threads import SLEEPING
from workers.jobs.parallel.messages import Failure, receive, send
from workers.jobs.runtime import template
from workers.training.checkpoint import Checkpoint, run_digest
from workers.training.config import TrainingConfig
from workers.training.distributed.ranks import RanksLost
from workers.training.loop import History, Paused, Report
from workers.training.trainer import network_in

__all__ = ["FOLDERS", "RENDEZVOUS", "Request", "train_on_devices", "trained_by"]

logger = logging.getLogger(__name__)

#: The file by which the ranks find each other, in a folder of this try of the run.
RENDEZVOUS, FOLDERS = "rendezvous", "ranks-"
#: Seconds between two questions whether to pause.
POLL_S = 0.2
#: Seconds for the other ranks to say why they ended, once one knows only that it waited in vain.
REASON_S = 3.0
#: Seconds for the others to end after the first rank has trained to the end.
END_S = 5.0
#: Variables that a rank gets; the service's settings, secrets among them, stay with the work horse.
KEPT = (*template.KEPT, "HOME", "TMPDIR")
KEPT_PREFIXES = (*template.KEPT_PREFIXES, "CUDA_", "CUBLAS_", "NCCL_", "NVIDIA_", "TRITON_")


@dataclass(frozen=True)
class Request:
    """What every rank is told; paths are absolute, ``limit_s`` is how long a step may wait."""

    plan: Mapping[str, Any]
    data: str
    checkpoint: str
    checkpoint_s: float
    device: str
    threads: int
    limit_s: float
    log_format: str

    def write(self, folder: Path) -> None:
        """For the ranks, which read it in ``folder``."""
        (folder / "request.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Request:
        """What was written there."""
        return cls(**json.loads((folder / "request.json").read_text()))


def train_on_devices(
    request: Request,
    *,
    devices: int,
    folder: Path,
    progress: Report,
    on_epoch: Callable[[History], None],
    on_checkpoint: Callable[[], None],
    should_pause: Callable[[], bool],
) -> None:
    """Train until the checkpoint that ``request`` names is the run's last one.

    Call it from the main thread: the ranks die with the thread that started them. ``folder`` is the
    training's own. Raises what ``workers.training.loop.train`` raises.
    """
    asked = False
    with _started(request, devices, folder) as ranks:
        while True:
            if not asked and should_pause():
                asked = ranks.ask_to_pause()
            for message in ranks.messages(POLL_S):
                match message:
                    case {"progress": [done, total, text]}:
                        progress(done, total, text)
                    case {"epoch": history}:
                        on_epoch(history)
                    case {"checkpoint": _}:
                        on_checkpoint()
                    case {"end": "paused"}:
                        raise Paused
                    case {"end": _}:
                        ranks.let_end(END_S)
                        return


def trained_by(checkpoint: Path, config: TrainingConfig, samples: int) -> tuple[Network, History]:
    """The network (as trained) and the curve of a run that ended, from its last checkpoint.

    Raises OSError where there is none, TrainingError.
    """
    last = Checkpoint.load(checkpoint, run_digest(config, samples), torch.device("cpu"))
    if last is None:
        raise FileNotFoundError(f"{checkpoint} is gone")
    return network_in(config, last.tensors), last.history


@contextmanager
def _started(request: Request, devices: int, folder: Path) -> Iterator[_Processes]:
    """The ranks, of which none is left afterwards, whatever happens."""
    with tempfile.TemporaryDirectory(prefix=FOLDERS, dir=folder, ignore_cleanup_errors=True) as own:
        request.write(Path(own))
        ranks = _Processes(devices)
        try:
            for rank in range(devices):
                ranks.start(rank, Path(own), request.threads)
            yield ranks
        finally:
            ranks.kill()


class _Processes:
    """The ranks of one run, as their work horse sees them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._connections: dict[int, Connection] = {}
        self._failures: dict[int, Failure] = {}

    def start(self, rank: int, folder: Path, threads: int) -> None:
        """Start a rank: a fresh interpreter in a session of its own."""
        ours, theirs = Pipe()
        module = ["-P", "-m", "workers.jobs.parallel.rank"]
        arguments = [rank, os.getpid(), theirs.fileno(), folder]
        self._processes[rank] = subprocess.Popen(
            [sys.executable, *module, *map(str, arguments)],
            env=_environment(threads),
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self._connections[rank] = ours

    def ask_to_pause(self) -> bool:
        """Ask the first rank to write a checkpoint and end; whether it could be told."""
        try:
            send(self._connections[0], pause=True)
        except (OSError, KeyError):
            return False  # it has just ended: ``messages`` says why
        return True

    def messages(self, timeout_s: float) -> Iterator[dict[str, Any]]:
        """What the first rank says, for at most so long. Raises what a rank failed with."""
        for rank, message in self._incoming(timeout_s):
            if "failed" in message:
                self._failures[rank] = Failure(**message["failed"])
            elif rank == 0:
                yield message
        if self._failures:
            raise self._reason()

    def _incoming(self, timeout_s: float) -> Iterator[tuple[int, dict[str, Any]]]:
        of = {connection: rank for rank, connection in self._connections.items()}
        for connection in wait(list(of), timeout_s):
            assert isinstance(connection, Connection)
            rank = of[connection]
            try:
                message = receive(connection)
            except (EOFError, OSError):
                del self._connections[rank]
                connection.close()
                if rank not in self._failures:
                    self._end_of(rank)
                continue
            yield rank, message

    def _end_of(self, rank: int) -> None:
        """A rank closed its connection: it trained to its end, or it was killed."""
        status = self._processes[rank].wait()
        if status < 0:
            self._failures[rank] = Failure("other", f"ended by signal {-status}")
        elif status:
            self._failures[rank] = Failure("other", f"ended with status {status}")

    def _reason(self) -> Exception:
        """The failure that explains the others."""
        until = time.monotonic() + REASON_S
        while self._only_lost() and self._connections and time.monotonic() < until:
            for rank, message in self._incoming(POLL_S):
                if "failed" in message:
                    self._failures[rank] = Failure(**message["failed"])
        order = ("stated", "system", "device", "other", "lost")
        rank = min(self._failures, key=lambda rank: order.index(self._failures[rank].kind))
        silent = sorted({*range(self.size)} - {*self._failures})
        if self._only_lost() and silent:
            return RanksLost(f"{self._who(silent[0])} does not answer")
        return self._failures[rank].error(self._who(rank))

    def _only_lost(self) -> bool:
        return all(failure.kind == "lost" for failure in self._failures.values())

    def _who(self, rank: int) -> str:
        return f"process {rank + 1} of {self.size}"

    def let_end(self, timeout_s: float) -> None:
        """Give the ranks so long to end by themselves."""
        until = time.monotonic() + timeout_s
        for process in self._processes.values():
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.info("rank %d is ended", process.pid)

    def kill(self) -> None:
        """End what is left, and wait for it."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        for connection in self._connections.values():
            connection.close()


def _environment(threads: int) -> dict[str, str]:
    """A rank's environment."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or name.startswith(KEPT_PREFIXES)
    }
    root = Path(str(service.__file__)).resolve().parents[1]
    return {
        **SLEEPING,
        **kept,
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
