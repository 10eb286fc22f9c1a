"""A child that somebody kills alone is no fault of the upload: one more is started, and a job whose
second child is killed, too, says so. The kills are real: SIGKILL to the inspection's process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.contract.schemas.problems import InternalError, TooLarge
from tests.workers.jobs.conftest import WAIT_S, Corridor
from tests.workers.jobs.work import training, work
from workers.jobs.inspection.oom_kills import oom_kills
from workers.jobs.inspection.sandbox import ChildEnded, ChildLimits
from workers.jobs.items.prepare import TRIES, _raise_problem, prepare

pytestmark = pytest.mark.usefixtures("forked_inspections")


def _inspections(folder: Path) -> list[int]:
    """Processes that work in an inspection's folder of this job."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                inside = Path(os.readlink(process / "cwd"))
            except OSError:
                continue
            if inside.parent == folder and inside.name.startswith(".inspect-"):
                found.append(int(process.name))
    return found


@contextmanager
def killing(folder: Path, times: int, number: signal.Signals) -> Iterator[list[int]]:
    """Sends the signal to so many inspections of the job; yields whom it was sent to."""
    ended, killed = threading.Event(), list[int]()

    def kill() -> None:
        while len(killed) < times and not ended.wait(0.002):
            for pid in _inspections(folder):
                if pid not in killed and len(killed) < times:
                    os.kill(pid, number)
                    killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join(WAIT_S)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_whose_child_is_killed_once_is_done(
    corridor: Corridor, number: signal.Signals
) -> None:
    job = corridor.submit(method="lipschitz", radius=False, attack=None)
    with killing(corridor.store.job_dir(job.id), 1, number) as killed:
        work(corridor, job.id)
    assert len(killed) == 1
    assert corridor.outcome(job, 0)["status"] == "succeeded"
    assert not list(corridor.store.job_dir(job.id).glob(".inspect-*"))


def test_what_a_killed_worker_left_is_removed_by_the_next(corridor: Corridor) -> None:
    """The worker died between the prepared folder and its child's one."""
    job = corridor.submit(method="lipschitz", radius=False, attack=None)
    prepare(corridor.store, corridor.settings, job)
    left = corridor.store.job_dir(job.id) / ".inspect-0123456789abcdef"
    left.mkdir()
    (left / "model").write_bytes(b"an upload")
    prepare(corridor.store, corridor.settings, job)
    assert not left.exists()
    assert corridor.store.prepared_dir(job.id).exists()


def test_a_job_whose_children_are_killed_says_what_it_was(corridor: Corridor) -> None:
    job = corridor.submit()
    with killing(corridor.store.job_dir(job.id), 99, signal.SIGKILL) as killed:
        work(corridor, job.id)
    assert len(killed) == TRIES == 2
    outcome = corridor.outcome(job, 0)
    assert (outcome["status"], outcome["error"]["code"]) == ("failed", "inspection_failed")
    assert outcome["error"]["status"] == InternalError.status
    assert "killed 2 times (signal 9)" in outcome["error"]["detail"]
    assert "retry the job" in outcome["error"]["hint"]
    # Nothing half-made is left, and what was uploaded is: the same job runs now.
    assert not corridor.store.prepared_dir(job.id).exists()
    again = corridor.submit(method="lipschitz", radius=False, attack=None)
    work(corridor, again.id)
    assert corridor.outcome(again, 0)["status"] == "succeeded"


def test_the_data_of_a_training_are_read_again_too(corridor: Corridor) -> None:
    job = training(corridor, epochs=1)
    with killing(corridor.store.job_dir(job.id), 1, signal.SIGKILL) as killed:
        work(corridor, job.id)
    assert len(killed) == 1
    assert corridor.outcome(job, 0)["status"] == "succeeded"


def test_a_kill_for_want_of_memory_is_a_limit(tmp_path: Path) -> None:
    ended = ChildEnded(-signal.SIGKILL, timed_out=False, stopped=False, tail="", oom=True)
    assert ended.out_of_limits
    assert not ended.killed
    with pytest.raises(TooLarge, match="no more memory") as caught:
        _raise_problem("job", tmp_path, ended, ChildLimits())
    assert caught.value.code == "too_large"
    # Somebody else's process was killed, and this one by a fault of its own.
    crash = ChildEnded(-signal.SIGSEGV, timed_out=False, stopped=False, tail="", oom=True)
    assert not crash.out_of_limits
    assert not crash.killed


def test_the_counter_is_that_of_the_nearest_cgroup(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    assert oom_kills(tmp_path) is None
    write("proc/vmstat", "pgfault 12\noom_kill 3\n")
    assert oom_kills(tmp_path) == 3
    write("proc/self/cgroup", "9:name=systemd:/x\n4:cpu,memory:/x/y\n0::/\n")
    write(
        "sys/fs/cgroup/memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"
    )
    assert oom_kills(tmp_path) == 5
    write("sys/fs/cgroup/memory/x/y/memory.oom_control", "oom_kill_disable 0\noom_kill 7\n")
    assert oom_kills(tmp_path) == 7
    write("proc/self/cgroup", "0::/a.slice/b\n")
    write("sys/fs/cgroup/a.slice/b/memory.events", "low 0\noom 2\noom_kill 11\noom_group_kill 0\n")
    assert oom_kills(tmp_path) == 11
    # This machine's own, whatever it is.
    found = oom_kills()
    assert found is None or found >= 0
