"""Threads spin at barriers on a quiet machine, sleep on a busy one, and compute the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from workers.jobs.hardware import barrier_waits
from workers.jobs.hardware.barrier_waits import WATCHED, can_watch, waiting_s, watch_barriers

needs_watching = pytest.mark.skipif(not can_watch(), reason="this machine cannot be watched")

#: Runs short parallel regions with pauses in between, and prints the processor time of 100 of them
#: with the library's own waiting and beside an idle team, and whether the results are the same.
PAUSES = """
import time, torch
from workers.jobs.hardware.barrier_waits import IdleTeam, _libgomp
torch.set_num_threads(2)
x = torch.linspace(0, 1, 2**18)
def run():
    spent, results = time.process_time(), []
    for _ in range(100):
        results.append((x * x).sum().item())
        time.sleep(0.004)
    return time.process_time() - spent, results
library = _libgomp()
for _ in range(2):
    spinning, first = run()
    team = IdleTeam(library, max(2, library.omp_get_num_procs()))
    sleeping, second = run()
    team.end()
    print(spinning, sleeping, int(first == second))
"""


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Busy processes on the processors of this one."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


@needs_watching
def test_beside_an_idle_team_threads_sleep_and_compute_the_same() -> None:
    """The library spins for three milliseconds after each region; twice, for the team ends."""
    waits = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in waits}
    environment |= WATCHED
    ended = subprocess.run(
        [sys.executable, "-c", PAUSES], capture_output=True, text=True, check=True, env=environment
    )
    for line in ended.stdout.splitlines():
        spinning, sleeping, same = map(float, line.split())
        assert same == 1
        assert spinning > 1.5 * sleeping


@needs_watching
def test_waiting_for_a_processor_is_seen() -> None:
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(own)])
    try:
        with neighbours(2):
            time.sleep(0.2)
            began, waited = time.perf_counter(), waiting_s()
            while time.perf_counter() - began < 0.5:
                pass
            share = (waiting_s() - waited) / (time.perf_counter() - began)
    finally:
        os.sched_setaffinity(0, own)
    assert share > barrier_waits.BUSY


def test_nothing_is_watched_where_an_operator_decides_or_one_thread_computes() -> None:
    before = barrier_waits._watcher
    assert not watch_barriers(1, {})
    assert not watch_barriers(2, {"OMP_WAIT_POLICY": "ACTIVE"})
    assert not watch_barriers(2, {"GOMP_SPINCOUNT": "1000"})
    assert not watch_barriers(2, WATCHED | {"GOMP_SPINCOUNT": "1000"})
    assert barrier_waits._watcher is before


def test_a_kernel_that_does_not_tell_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    def untold() -> float:
        raise FileNotFoundError("schedstat")

    monkeypatch.setattr(barrier_waits, "waiting_s", untold)
    assert not can_watch()
    monkeypatch.setattr(barrier_waits, "_watcher", None)
    monkeypatch.setattr(barrier_waits, "_libgomp", lambda: object())
    assert not watch_barriers(2, {})
