"""Cancelling stops real workers: a shard between two bytecodes, a horse that hangs by force."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

from service.contract.outcomes import cancel
from service.contract.processes import wait_until
from tests.workers.jobs.conftest import WAIT_S, Corridor, in_a_shard, work_horses
from tests.workers.jobs.runtime.wake_up_jobs import wake_up
from workers.jobs.runtime import lease_renewer, lease_watchdog
from workers.jobs.work_loop import WorkLoop

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_inspections")]

Start = Callable[..., subprocess.Popen[bytes]]

#: Hours of attack.
ENDLESS = {"attack": {"steps": 100_000, "restarts": 100, "audit": 1.0, "seed": 0}}


def test_pauses_leave_room_in_five_seconds() -> None:
    """What a busy machine takes on top is nobody's promise; so the clock is not asked below."""
    assert (
        lease_renewer.LONGEST_INTERVAL_S < lease_watchdog.GRACE_S
    )  # a horse is asked before it is killed
    assert lease_watchdog.LOOK_S + lease_watchdog.GRACE_S + lease_watchdog.LOOK_S < 5.0


@pytest.mark.parametrize("hangs", [False, True])
def test_a_running_shard_stops(corridor: Corridor, start_worker: Start, hangs: bool) -> None:
    worker = start_worker()
    job = corridor.submit(**ENDLESS)
    wake_up(corridor, job)
    assert wait_until(lambda: in_a_shard(worker), WAIT_S)
    (horse,) = work_horses(worker)
    if hangs:
        os.kill(horse, signal.SIGSTOP)
    state = corridor.ledger.get(job.id)
    assert state is not None
    began = time.monotonic()
    assert cancel(corridor.store, corridor.ledger, state) == "cancelled"
    assert wait_until(lambda: not work_horses(worker), WAIT_S)
    print(f"horse gone {time.monotonic() - began:.1f} s after the cancel (hangs: {hangs})")
    assert worker.poll() is None
    # The worker is there for the next job at once, and the cancelled one stays as it is.
    following = corridor.submit(attack=None)
    wake_up(corridor, following)
    assert corridor.outcome(following)["status"] == "succeeded"
    assert corridor.outcome(job, 0)["status"] == "cancelled"


def test_a_cancelled_attack_ends_by_itself_where_no_signal_reaches_it(corridor: Corridor) -> None:
    """Whatever swallows or delays the signal: the bounds and the attack ask themselves."""
    job = corridor.submit(**ENDLESS)

    def cancel_in_a_shard() -> None:
        def at_work() -> bool:
            state = corridor.ledger.get(job.id)
            return state is not None and state.progress.message.startswith(("attack", "audit"))

        assert wait_until(at_work, WAIT_S)
        state = corridor.ledger.get(job.id)
        assert state is not None
        assert cancel(corridor.store, corridor.ledger, state) == "cancelled"

    canceller = threading.Thread(target=cancel_in_a_shard)
    # Threads inherit the mask: nobody in this process takes the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        canceller.start()
        WorkLoop(corridor.settings, corridor.store, corridor.ledger, job.id).work()
    finally:
        # What is pending goes to nobody.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        canceller.join()
    assert corridor.outcome(job, 0)["status"] == "cancelled"
