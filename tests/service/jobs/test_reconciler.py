"""Jobs survive a lost Redis, lost wake-up jobs and dying workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from service.access.signing_key import SigningKeys
from service.contract.ledger.connection import connect
from service.contract.ledger.ledger import Lease, Ledger
from service.contract.outcomes import conclude, outcome_state
from service.contract.schemas.problems import InternalError, InvalidInput, StorageFull
from service.contract.settings import Settings
from service.contract.storage.store import Store
from service.jobs.idempotency import Repeats
from service.jobs.notifier import Notifier
from service.jobs.reconciler import Reconciler
from service.jobs.report_signer import ReportSigner
from service.reports.signing import Finding, parse_report, verify
from tests.service.conftest import Make, eventually, finish


class PromptNotifier(Notifier):
    """Notifies before it returns, so that a test sees every wake-up job a round asked for."""

    def notify(self, job_id: str) -> None:
        self._enqueue([job_id])


@pytest.fixture
def notifier(quick: Settings) -> Iterator[Notifier]:
    notifier = PromptNotifier(connect(quick, text=False), quick)
    yield notifier
    notifier.close()


@pytest.fixture
def reconciler(quick: Settings, store: Store, redis: Redis, notifier: Notifier) -> Reconciler:
    return Reconciler(quick, store, Ledger(redis, quick), notifier, Repeats(redis))


def test_an_accepted_job_that_redis_does_not_know_is_entered_and_notified(
    reconciler: Reconciler, ledger: Ledger, notifier: Notifier, accept: Make
) -> None:
    job = accept()
    reconciler.tick()
    state = ledger.get(job.id)
    assert state is not None
    assert state.submission == job
    assert notifier.waiting() == {job.id: 1}


def test_a_redis_that_lost_everything_is_filled_again_with_open_and_ended_jobs(
    reconciler: Reconciler, ledger: Ledger, redis: Redis, store: Store, accept: Make
) -> None:
    opened, ended, failed = accept(), accept(), accept()
    reconciler.tick()
    finish(store, ledger, ended)
    conclude(store, ledger, failed, "failed", error=InvalidInput("no", code="invalid_onnx"))
    before = [ledger.get(job.id) for job in (ended, failed)]
    redis.flushall()
    reconciler.tick()
    assert [ledger.get(job.id) for job in (ended, failed)] == before
    assert ledger.index.active() == {opened.id}
    assert isinstance(ledger.lease(opened.id, worker="w"), Lease)


def test_a_lost_wake_up_job_is_sent_again_but_a_waiting_one_is_not_doubled(
    reconciler: Reconciler, notifier: Notifier, redis: Redis, accept: Make
) -> None:
    job = accept()
    for _ in range(5):
        reconciler.tick()
        assert notifier.waiting() == {job.id: 1}
    redis.delete("rq:queue:certserve")
    reconciler.tick()
    assert notifier.waiting() == {job.id: 1}


def test_a_job_that_ends_every_worker_fails_with_the_reason(
    quick: Settings, reconciler: Reconciler, redis: Redis, store: Store, accept: Make
) -> None:
    job = accept()
    reconciler.tick()
    ledger = Ledger(redis, quick)
    for _ in range(3):
        assert isinstance(ledger.lease(job.id, worker="w"), Lease)
        time.sleep(0.07)  # killed: nobody renews
    reconciler.tick()
    state = ledger.get(job.id)
    assert state is not None
    assert state.status == "failed"
    assert state.error is not None
    assert state.error["code"] == "attempts_exhausted"
    assert "prepare was tried 3 times" in state.error["detail"]
    assert outcome_state(store, job.id) == state


def test_a_job_whose_end_finds_no_room_holds_up_no_other(
    quick: Settings,
    reconciler: Reconciler,
    redis: Redis,
    store: Store,
    notifier: Notifier,
    accept: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stuck = accept()
    reconciler.tick()
    ledger = Ledger(redis, quick)
    for _ in range(3):
        assert isinstance(ledger.lease(stuck.id, worker="w"), Lease)
        time.sleep(0.07)
    redis.delete("rq:queue:certserve")
    full = True
    create_json = store.create_json

    def create(path: Path, value: object) -> bool:
        if full and stuck.id in path.parts:
            raise StorageFull("the disk is full")
        return create_json(path, value)

    monkeypatch.setattr(store, "create_json", create)
    # A retry that cannot be entered is kept for later, as is the end of the one above.
    retried = accept(attempt=2)
    monkeypatch.setattr(store, "job_dir", _full_for(retried.id, store.job_dir, lambda: full))
    other = accept()
    reconciler.tick()
    assert notifier.waiting()[other.id]
    assert ledger.get(stuck.id).status == "running"  # type: ignore[union-attr]
    assert ledger.get(retried.id) is None
    full = False
    reconciler.tick()
    assert ledger.get(stuck.id).status == "failed"  # type: ignore[union-attr]
    assert ledger.get(retried.id).status == "queued"  # type: ignore[union-attr]


def _full_for(
    job_id: str, job_dir: Callable[[str], Path], full: Callable[[], bool]
) -> Callable[[str], Path]:
    def create(wanted: str) -> Path:
        if wanted == job_id and full():
            raise StorageFull("the disk is full")
        return job_dir(wanted)

    return create


def test_one_wake_up_job_for_every_worker_is_enough(
    reconciler: Reconciler, ledger: Ledger, notifier: Notifier, redis: Redis, accept: Make
) -> None:
    for name in ("a", "b", "c"):
        ledger.worker_registry.heartbeat(name, {})
    for _ in range(20):
        accept()
    reconciler.tick()
    assert notifier.waiting().total() == 20
    redis.delete("rq:queue:certserve")
    for _ in range(3):
        reconciler.tick()
        assert notifier.waiting().total() == 3


def test_no_more_wake_up_jobs_than_can_be_of_use(quick: Settings, redis: Redis) -> None:
    notifier = Notifier(connect(quick, text=False), quick)
    for number in range(300):
        notifier.notify(f"{number:026d}")
    notifier.close()
    notifier._thread.join()  # close() gives up after a while
    assert 1 <= redis.llen("rq:queue:certserve") <= 64


def test_a_wake_up_job_that_cannot_be_made_stops_no_notifier(
    quick: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier = Notifier(connect(quick, text=False), quick)
    failed: list[object] = []

    def broken(wake_ups: object) -> None:
        failed.append(wake_ups)
        raise ValueError("no wake-up job")

    with monkeypatch.context() as patched:
        patched.setattr(notifier._queue, "enqueue_many", broken)
        notifier.notify("0" * 26)
        eventually(lambda: failed)
    notifier.notify("1" * 26)
    eventually(lambda: notifier.waiting() == {"1" * 26: 1})
    notifier.close()


def test_jobs_of_an_earlier_release_get_their_place_in_the_line(
    reconciler: Reconciler, ledger: Ledger, redis: Redis, accept: Make
) -> None:
    job = accept()
    ledger.create(job)
    redis.delete(ledger.scheduler.key)
    assert ledger.scheduler.next_job().job_id is None
    reconciler.tick()
    assert ledger.scheduler.next_job().job_id == job.id


def test_an_outcome_on_disk_wins_over_the_ledger_and_over_later_outcomes(
    api: httpx.Client, store: Store, ledger: Ledger, redis: Redis, accept: Make
) -> None:
    job = accept()
    ledger.create(job)
    ledger.lease(job.id, worker="w")
    finish(store, ledger, job)
    assert conclude(store, ledger, job, "failed", error=InvalidInput("late")) == "succeeded"
    shown = api.get(f"/jobs/{job.id}").json()
    redis.flushall()
    assert api.get(f"/jobs/{job.id}").json() == shown
    assert shown["status"] == "succeeded"
    assert shown["started_at"] <= shown["finished_at"]
    assert shown["links"]["report"] == f"/jobs/{job.id}/report"


def test_a_training_says_which_worker_it_waits_for_and_wakes_nobody_up_until_then(
    reconciler: Reconciler, ledger: Ledger, notifier: Notifier, accept: Make
) -> None:
    job = accept(kind="train", training={"devices": 4})
    reconciler.tick()

    def message() -> str:
        state = ledger.get(job.id)
        assert state is not None
        return state.progress.message

    assert message() == "waiting for a worker"
    woken = notifier.waiting().total()
    for name, devices in (("one", {}), ("two", {"devices": "2"})):
        ledger.worker_registry.heartbeat(name, {"host": "h", **devices})
        reconciler.tick()
    assert message() == "waiting for a worker with 4 devices: the largest one has 2"
    assert notifier.waiting().total() == woken
    ledger.worker_registry.heartbeat("three", {"devices": "4"})
    reconciler.tick()
    assert message() == "waiting for a worker"
    assert notifier.waiting().total() > woken
    ledger.worker_registry.deregister("three")
    reconciler.tick()
    assert message().startswith("waiting for a worker with 4")
    assert isinstance(ledger.lease(job.id, worker="three"), Lease)
    assert message() == "starting"


def test_a_queued_job_says_what_it_waits_for(
    api: httpx.Client, ledger: Ledger, accept: Make
) -> None:
    jobs = [accept() for _ in range(3)]
    for job in jobs:
        ledger.create(job)

    def messages() -> list[str]:
        found = [api.get(f"/jobs/{job.id}").json() for job in jobs]
        return [shown["progress"]["message"] for shown in found if shown["status"] == "queued"]

    assert messages() == ["waiting for a worker: none is running"] * 3
    ledger.worker_registry.heartbeat("one", {"host": "h"})
    waiting = "waiting for a worker"
    one, two = f"{waiting}: one job is before it", f"{waiting}: 2 jobs are before it"
    assert messages() == [waiting, one, two]
    # A job at work is still before the others.
    assert isinstance(ledger.lease(jobs[0].id, worker="one"), Lease)
    assert messages() == [one, two]
    ledger.finish(jobs[0].id, "cancelled")
    assert messages() == [waiting, one]


def test_a_report_is_signed_when_its_job_has_ended(
    quick: Settings,
    store: Store,
    ledger: Ledger,
    redis: Redis,
    notifier: Notifier,
    accept: Make,
    tmp_path: Path,
) -> None:
    """By the reconciler, before anybody asks; and once, whatever key there is later."""
    keys = SigningKeys(tmp_path / "signing")
    signer = ReportSigner(store, keys)
    reconciler = Reconciler(quick, store, ledger, notifier, Repeats(redis), signer=signer)
    good, failed = accept(), accept()
    reconciler.tick()
    assert not store.signed_report_path(good.id).exists()
    finish(store, ledger, good)
    conclude(store, ledger, failed, "failed", error=InvalidInput("no", code="invalid_onnx"))
    reconciler.tick()
    signed = store.signed_report_path(good.id).read_bytes()
    assert verify(parse_report(signed), {keys.public()}) is Finding.VALID
    assert not store.signed_report_path(failed.id).exists()
    assert signer.signed(failed.id) is None
    keys.rotate()
    assert signer.signed(good.id) == store.signed_report_path(good.id)
    assert store.signed_report_path(good.id).read_bytes() == signed


def test_a_report_that_cannot_be_signed_holds_up_no_other(
    quick: Settings,
    store: Store,
    ledger: Ledger,
    redis: Redis,
    notifier: Notifier,
    accept: Make,
    tmp_path: Path,
) -> None:
    """As an earlier release may have left one: with an integer that JSON readers read apart."""
    keys = SigningKeys(tmp_path / "signing")
    signer = ReportSigner(store, keys)
    reconciler = Reconciler(quick, store, ledger, notifier, Repeats(redis), signer=signer)
    jobs = sorted((accept(), accept()), key=lambda job: job.id)
    reconciler.tick()
    for job in jobs:
        finish(store, ledger, job)
    store.write_json(store.report_path(jobs[0].id), {"samples": 2**53})
    reconciler.tick()
    assert store.signed_report_path(jobs[1].id).exists()
    with pytest.raises(InternalError, match="cannot be signed") as raised:
        signer.signed(jobs[0].id)
    assert raised.value.code == "report_unsignable"
