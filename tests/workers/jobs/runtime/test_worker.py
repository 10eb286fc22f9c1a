"""Real worker processes: they do wake-up jobs, and nothing else that is on the queue."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from rq import Queue
from rq.serializers import DefaultSerializer

from service.contract.ids import new_job_id
from service.contract.ledger.connection import connect
from service.contract.processes import wait_until
from tests.horses import template_of
from tests.workers.jobs.conftest import WAIT_S, Corridor, held_by, in_a_shard, work_horses
from tests.workers.jobs.runtime.wake_up_jobs import enqueue, wake_up
from workers.jobs.runtime.work_horse import MessageRefused, check_message, refuse_pickle

pytestmark = pytest.mark.slow

Start = Callable[..., subprocess.Popen[bytes]]

SLOW = {"attack": {"steps": 100_000, "restarts": 100, "audit": 1.0, "seed": 0}}


def queue_is_empty(corridor: Corridor) -> bool:
    name = f"rq:queue:{corridor.settings.queue_name}"
    return not corridor.redis.llen(name) and not corridor.redis.llen(f"{name}:intermediate")


def test_a_wake_up_job_is_done(corridor: Corridor, start_worker: Start) -> None:
    job = corridor.submit()
    wake_up(corridor, job)
    start_worker()
    assert corridor.outcome(job)["status"] == "succeeded"
    assert wait_until(lambda: queue_is_empty(corridor), WAIT_S)
    assert wait_until(lambda: not corridor.redis.keys("rq:job:*"), WAIT_S)
    (facts,) = corridor.ledger.worker_registry.living()
    assert facts["device"] == "auto"


def test_other_functions_are_refused(corridor: Corridor, start_worker: Start) -> None:
    mark = corridor.folder / "mark"
    job = corridor.submit()  # without waiting work a worker drops every wake-up job unread
    enqueue(corridor, "os.system", f"touch {mark}")
    enqueue(corridor, "subprocess.call", ["touch", str(mark)])
    worker = start_worker()
    wake_up(corridor, job)
    assert corridor.outcome(job)["status"] == "succeeded"
    assert not mark.exists()
    assert worker.poll() is None


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickles_are_never_loaded(corridor: Corridor, start_worker: Start) -> None:
    mark = corridor.folder / "mark"
    job = corridor.submit()
    poison = pickle.dumps(Touch(mark))
    message = enqueue(corridor, "workers.jobs.ticket.run", new_job_id())
    raw = connect(corridor.settings, text=False)
    raw.hset(f"rq:job:{message.id}", mapping={"data": zlib.compress(poison), "meta": poison})
    start_worker()
    wake_up(corridor, job)
    assert corridor.outcome(job)["status"] == "succeeded"
    assert not mark.exists()
    raw.close()


def test_a_wake_up_job_without_work_starts_no_horse(
    corridor: Corridor, start_worker: Start
) -> None:
    """One wake-up job does all jobs there are; the others are forgotten, with all that RQ kept."""
    jobs = [corridor.submit() for _ in range(3)]
    for job in [*jobs, *jobs]:
        wake_up(corridor, job)
    worker = start_worker()
    for job in jobs:
        assert corridor.outcome(job)["status"] == "succeeded"
    assert wait_until(lambda: queue_is_empty(corridor), WAIT_S)
    assert wait_until(lambda: not corridor.redis.keys("rq:job:*"), WAIT_S)
    assert wait_until(lambda: not corridor.redis.keys("rq:executions:*"), WAIT_S)
    assert wait_until(lambda: not work_horses(worker), WAIT_S)
    before = corridor.redis.hget(corridor.redis.keys("rq:worker:*")[0], "successful_job_count")
    for _ in range(20):
        wake_up(corridor, jobs[0])
    seen: list[int] = []

    def all_dropped() -> bool:
        seen.extend(work_horses(worker))
        return not corridor.redis.keys("rq:job:*") and queue_is_empty(corridor)

    assert wait_until(all_dropped, WAIT_S, interval_s=0.005)
    assert not seen
    after = corridor.redis.hget(corridor.redis.keys("rq:worker:*")[0], "successful_job_count")
    assert before == after


@pytest.mark.parametrize(
    ("function", "arguments", "options"),
    [
        ("workers.jobs.work_loop.WorkLoop", ["01M7YX50S0YE7AHWY9TEVWPVW9"], {}),
        ("workers.jobs.ticket.run", ["../../etc"], {}),
        ("workers.jobs.ticket.run", [7], {}),
        ("workers.jobs.ticket.run", [], {}),
        ("workers.jobs.ticket.run", ["01M7YX50S0YE7AHWY9TEVWPVW9"], {"x": 1}),
    ],
)
def test_check_message(
    corridor: Corridor, function: str, arguments: list[object], options: dict[str, object]
) -> None:
    connection = connect(corridor.settings, text=False)
    queue = Queue("certserve", connection=connection, serializer="json")
    job = queue.create_job(function, args=arguments, kwargs=options)
    with pytest.raises(MessageRefused):
        check_message(job)
    connection.close()


def test_refuse_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DefaultSerializer, "loads", DefaultSerializer.loads)
    refuse_pickle()
    with pytest.raises(MessageRefused):
        DefaultSerializer.loads(pickle.dumps(1))


def test_one_wake_up_job_brings_all_workers(corridor: Corridor, start_worker: Start) -> None:
    """The work horse that prepared the job notifies the others: here is no reconciler."""
    job = corridor.submit(**SLOW)
    start_worker()
    start_worker()
    assert wait_until(lambda: len(corridor.ledger.worker_registry.living()) == 2, WAIT_S)
    wake_up(corridor, job)
    holders = f"certserve:job:{job.id}:holder"
    assert wait_until(lambda: corridor.redis.hlen(holders) == 2, WAIT_S)
    # The second worker may come when the first shard is done already.
    assert all(item.startswith("shard:") for item in corridor.redis.hgetall(holders))


def test_no_secret_in_the_process_list(corridor: Corridor, start_worker: Start) -> None:
    job = corridor.submit(**SLOW)
    wake_up(corridor, job)
    worker = start_worker()

    assert wait_until(lambda: in_a_shard(worker), WAIT_S)
    (horse,) = work_horses(worker)
    template = template_of(worker.pid)
    assert template is not None
    assert Path(f"/proc/{horse}/comm").read_text() == "horse\n"
    for pid in (worker.pid, template, horse):
        assert b"redis" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    # What a horse's memory shows as its environment is the template's.
    assert b"REDIS" not in Path(f"/proc/{template}/environ").read_bytes()


def test_cancellation_stops_a_running_shard(corridor: Corridor, start_worker: Start) -> None:
    job = corridor.submit(**SLOW)
    wake_up(corridor, job)
    worker = start_worker()
    assert wait_until(lambda: in_a_shard(worker), WAIT_S)
    corridor.redis.hset(f"certserve:job:{job.id}", "cancel", "1")
    # Left alone the shard would take hours.
    assert corridor.outcome(job)["status"] == "cancelled"


def test_a_killed_horse_gives_its_item_back_at_once(
    corridor: Corridor, start_worker: Start
) -> None:
    """Without waiting for the lease, and with the reason on record."""
    corridor.settings = corridor.settings.model_copy(
        update={"lease_ttl_s": 600.0, "samples_per_shard": 30}
    )
    job = corridor.submit(**SLOW)
    worker = start_worker()
    holders = f"certserve:job:{job.id}:holder"
    for tries in (1, 2, 3):
        wake_up(corridor, job)
        # Not as soon as the ledger knows: the note for the parent is written after the lease.
        assert wait_until(lambda: in_a_shard(worker), WAIT_S)
        held = held_by(worker)
        assert held is not None
        assert (held.item, held.tries) == ("shard:0", tries)
        (horse,) = work_horses(worker)
        os.kill(horse, signal.SIGKILL)
        assert wait_until(lambda: "shard:0" not in corridor.redis.hgetall(holders), WAIT_S)
    wake_up(corridor, job)
    error = corridor.outcome(job)["error"]
    assert error["code"] == "attempts_exhausted"
    assert "signal 9" in error["detail"]
