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
from tests.horses import children_of
from tests.workers.jobs.conftest import WAIT_S, Corridor, work_horses
from tests.workers.jobs.runtime.wake_up_jobs import wake_up
from tests.workers.jobs.work import training
from workers.jobs.items.train import train_model
from workers.jobs.parallel.messages import Failure, receive, send
from workers.training.config import TrainingError
from workers.training.distributed.ranks import RanksLost

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_inspections")]

Start = Callable[..., subprocess.Popen[bytes]]

#: Long enough to be disturbed twice, with a checkpoint after each look.
LONG = {"epochs": 120, "devices": 2}
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


def whole(corridor: Corridor, job: JobSubmission, **settings: object) -> dict[str, Any]:
    """What comes of a job that nobody disturbs, in this process."""
    return train_model(
        corridor.store,
        corridor.settings.model_copy(update=settings),
        job,
        progress=lambda done, total, message: None,
        stop=lambda: False,
        should_pause=lambda: False,
    )


def test_a_run_on_two_devices_that_loses_a_process_and_its_horse_ends_in_the_same_bits(
    corridor: Corridor, worker: subprocess.Popen[bytes]
) -> None:
    expected = whole(corridor, training(corridor, **LONG))
    job = training(corridor, **LONG)
    wake_up(corridor, job)
    assert wait_until(lambda: step_of(corridor, job) > 0, WAIT_S)
    first = ranks_of(worker)
    assert set(first) == {0, 1}
    os.kill(first[1], signal.SIGKILL)
    assert wait_until(lambda: gone(first), WAIT_S)
    error = f"certserve:job:{job.id}"
    assert wait_until(lambda: bool(corridor.redis.hget(error, "last_error")), WAIT_S)
    assert "process 2 of 2: ended by signal 9" in corridor.redis.hget(error, "last_error")
    # Tried again by the same horse, from the checkpoint.
    assert wait_until(lambda: len(ranks_of(worker)) == 2, WAIT_S)
    second, at = ranks_of(worker), step_of(corridor, job)
    assert at > 0
    assert not {*first.values()} & {*second.values()}
    assert wait_until(lambda: step_of(corridor, job) > at, WAIT_S)
    (horse,) = work_horses(worker)
    os.kill(horse, signal.SIGKILL)
    assert wait_until(lambda: gone(second), WAIT_S), "they outlived their work horse"
    wake_up(corridor, job)
    outcome = corridor.outcome(job)
    assert outcome["status"] == "succeeded", outcome
    done = corridor.store.read_json(corridor.store.training_dir(job.id) / "trained.json")
    assert done is not None
    assert done["history"] == expected["history"]
    assert done["model"]["digest"] == expected["model"]["digest"]
    left = {path.name for path in corridor.store.training_dir(job.id).iterdir()}
    assert left == {"history.json", "trained.json"}


def test_a_process_that_hangs_ends_the_try_and_a_cancellation_ends_them_all(
    corridor: Corridor, worker: subprocess.Popen[bytes]
) -> None:
    job = training(corridor, **ENDLESS)
    wake_up(corridor, job)
    assert wait_until(lambda: step_of(corridor, job) > 0, WAIT_S)
    hanging = ranks_of(worker)
    os.kill(hanging[1], signal.SIGSTOP)
    key = f"certserve:job:{job.id}"
    assert wait_until(lambda: bool(corridor.redis.hget(key, "last_error")), WAIT_S)
    assert "process 2 of 2 does not answer" in corridor.redis.hget(key, "last_error")
    assert gone(hanging)
    assert wait_until(lambda: len(ranks_of(worker)) == 2, WAIT_S)
    second = ranks_of(worker)
    state = corridor.ledger.get(job.id)
    assert state is not None
    assert cancel(corridor.store, corridor.ledger, state) == "cancelled"
    assert wait_until(lambda: gone(second), WAIT_S)
    assert corridor.outcome(job, 0)["status"] == "cancelled"
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
