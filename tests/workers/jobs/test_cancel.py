"""Cancelling stops real workers: the shard within five seconds, a horse that hangs by force."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.contract.outcomes import cancel
from service.contract.processes import wait_until
from service.contract.schemas import JobSubmission
from tests.workers.jobs.conftest import Corridor
from tests.workers.jobs.test_worker import ring_job

pytestmark = pytest.mark.slow

Start = Callable[..., subprocess.Popen[bytes]]

#: Minutes of attack on every sample.
ENDLESS = {"attack": {"steps": 100_000, "restarts": 100, "audit": 1.0, "seed": 0}}


def horses(worker: subprocess.Popen[bytes]) -> list[int]:
    path = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def running_job(corridor: Corridor) -> JobSubmission:
    """A job that is in the middle of a shard."""
    job = corridor.submit(**ENDLESS)
    ring_job(corridor, job)

    def in_a_shard() -> bool:
        holders = corridor.redis.hkeys(f"certserve:job:{job.id}:holder")
        return any(item.startswith("shard") for item in holders)

    assert wait_until(in_a_shard, 60)
    time.sleep(1.0)
    return job


@pytest.mark.parametrize("hangs", [False, True])
def test_a_running_shard_stops_within_five_seconds(
    corridor: Corridor, start_worker: Start, hangs: bool
) -> None:
    worker = start_worker()
    job = running_job(corridor)
    (horse,) = horses(worker)
    if hangs:
        os.kill(horse, signal.SIGSTOP)
    state = corridor.ledger.get(job.id)
    assert state is not None
    began = time.monotonic()
    assert cancel(corridor.store, corridor.ledger, state) == "cancelled"
    assert wait_until(lambda: not horses(worker), 5.0)
    print(f"horse gone {time.monotonic() - began:.1f} s after the cancel (hangs: {hangs})")
    assert worker.poll() is None
    # The worker is there for the next job at once, and the cancelled one stays as it is.
    following = corridor.submit(attack=None)
    ring_job(corridor, following)
    assert corridor.outcome(following)["status"] == "succeeded"
    assert corridor.outcome(job, 0)["status"] == "cancelled"
