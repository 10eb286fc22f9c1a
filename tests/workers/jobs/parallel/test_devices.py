"""A training on two devices by a real worker: what dies or hangs costs time alone."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections.abc import Callable
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch

from models.errors import ModelError
from service.contract.outcomes import cancel
from service.contract.processes import wait_until
from service.contract.schemas.submissions import JobSubmission
from tests.extent import ALL, examples
from tests.horses import children_of
from tests.workers.jobs.conftest import WAIT_S, Corridor, work_horses
from tests.workers.jobs.runtime.wake_up_jobs import wake_up
from tests.workers.jobs.work import training
from workers.jobs.parallel.messages import Failure, receive, send
from workers.training.config import TrainingError
from workers.training.distributed.ranks import RanksLost

pytestmark = pytest.mark.slow

Start = Callable[..., subprocess.Popen[bytes]]

#: Long enough to be disturbed twice.
LONG = {"epochs": 160, "devices": 2}
#: Never done.
ENDLESS = {"epochs": 100_000, "devices": 2}


@pytest.fixture
def worker(corridor: Corridor, start_worker: Start) -> subprocess.Popen[bytes]:
    """A worker that owns two processes."""
    return start_worker(
        CERTSERVE_DEVICE="cpu",
        CERTSERVE_DEVICES="0,1",
        CERTSERVE_CHECKPOINT_INTERVAL_S="0.05",
        CERTSERVE_RANK_TIMEOUT_S="5",
    )


def ranks_of(worker: subprocess.Popen[bytes]) -> dict[int, int]:
    """The processes of the training that the worker's horse has in hand: rank -> pid."""
    found: dict[int, int] = {}
    for horse in work_horses(worker):
        for child in children_of(horse):
            try:
                words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "workers.jobs.parallel.rank" in words:
                found[int(words[words.index("workers.jobs.parallel.rank") + 1])] = child
    return found


def step_of(corridor: Corridor, job: JobSubmission) -> int:
    """The step of the job's checkpoint; 0 without one."""
    path = corridor.store.training_dir(job.id) / "checkpoint.safetensors"
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, ValueError):
        return 0
    return int(json.loads(header["__metadata__"]["facts"])["step"])


def gone(pids: dict[int, int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids.values())


def begun(
    corridor: Corridor, worker: subprocess.Popen[bytes], job: JobSubmission
) -> dict[int, int]:
    """The two processes of the job, once they have written a checkpoint."""
    before = step_of(corridor, job)
    wake_up(corridor, job)
    assert wait_until(lambda: step_of(corridor, job) > before, WAIT_S)
    found = ranks_of(worker)
    assert set(found) == {0, 1}
    return found


def last_error(corridor: Corridor, job: JobSubmission) -> str:
    """Why the job's last try failed."""
    key = f"certserve:job:{job.id}"
    assert wait_until(lambda: bool(corridor.redis.hget(key, "last_error")), WAIT_S)
    return str(corridor.redis.hget(key, "last_error"))


def history_of(corridor: Corridor, job: JobSubmission) -> list[dict[str, Any]]:
    """The curve of a job that trained to its end."""
    outcome = corridor.outcome(job)
    assert outcome["status"] == "succeeded", outcome
    done = corridor.store.read_json(corridor.store.training_dir(job.id) / "trained.json")
    assert done is not None
    history: list[dict[str, Any]] = done["history"]
    return history


def test_what_dies_or_hangs_costs_time_alone_and_nothing_is_left(
    corridor: Corridor, worker: subprocess.Popen[bytes]
) -> None:
    """A process of the training is killed, then its work horse; of another the job is cancelled.

    At night one hangs, too. That such a run ends in the same bits is shown with the loop
    (``tests/workers/training/distributed``), whose checkpoints these are.
    """
    job = training(corridor, **LONG)
    first = begun(corridor, worker, job)
    os.kill(first[1], signal.SIGKILL)
    assert last_error(corridor, job) == "RanksLost: process 2 of 2: ended by signal 9"
    assert gone(first)
    # Tried again by the same horse, from the checkpoint.
    second = begun(corridor, worker, job)
    assert not {*first.values()} & {*second.values()}
    (horse,) = work_horses(worker)
    os.kill(horse, signal.SIGKILL)
    assert wait_until(lambda: gone(second), WAIT_S), "they outlived their work horse"
    wake_up(corridor, job)
    history = history_of(corridor, job)
    assert [row["epoch"] for row in history] == list(range(1, LONG["epochs"] + 1))
    if ALL:
        alone = training(corridor, **{**LONG, "devices": 1})
        wake_up(corridor, alone)
        (*_, expected) = history_of(corridor, alone)
        for name in ("loss", "accuracy"):
            assert history[-1][name] == pytest.approx(expected[name], abs=0.02)
    left = {path.name for path in corridor.store.training_dir(job.id).iterdir()}
    assert left == {"history.json", "trained.json"}

    endless = training(corridor, **ENDLESS)
    for _ in range(examples(0, 1)):
        hanging = begun(corridor, worker, endless)
        os.kill(hanging[1], signal.SIGSTOP)
        assert "process 2 of 2 does not answer" in last_error(corridor, endless)
        assert gone(hanging)
    last = begun(corridor, worker, endless)
    state = corridor.ledger.get(endless.id)
    assert state is not None
    assert cancel(corridor.store, corridor.ledger, state) == "cancelled"
    assert wait_until(lambda: gone(last), WAIT_S)
    assert corridor.outcome(endless, 0)["status"] == "cancelled"
    assert worker.poll() is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TrainingError("training_diverged", "no", hint="less", field="epochs"), TrainingError),
        (ModelError("no", code="invalid_network", hint="another"), TrainingError),
        (OSError(errno.ENOSPC, "full"), OSError),
        (torch.AcceleratorError("gone"), torch.AcceleratorError),
        (RanksLost("in vain"), RanksLost),
        (ZeroDivisionError("by zero"), RanksLost),
    ],
)
def test_what_ends_a_rank_is_the_work_horses_error(error: Exception, kind: type[Exception]) -> None:
    """With code, hint, field and number; but no code where the run is to be tried again."""
    ours, theirs = Pipe()
    with ours, theirs:
        send(theirs, failed=Failure.of(error).message())
        found = Failure(**receive(ours)["failed"]).error("process 2 of 2")
    assert type(found) is kind
    for name in ("code", "hint", "field", "errno"):
        assert getattr(found, name, None) == getattr(error, name, None)
    assert str(error.args[-1]) in str(found)
