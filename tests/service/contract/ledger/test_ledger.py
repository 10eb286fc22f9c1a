"""The ledger keeps its promises on a real Redis, with leases that run out and workers that die."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from redis import Redis

from service.contract.ledger.ledger import Busy, Exhausted, Lease, Ledger, NoWork
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from tests.service.conftest import eventually

Make = Callable[..., JobSubmission]


def lease(ledger: Ledger, job: str, worker: str = "w") -> Lease:
    found = ledger.lease(job, worker=worker)
    assert isinstance(found, Lease), found
    return found


@pytest.fixture
def impatient(redis: Redis, settings: Settings) -> Ledger:
    """Leases run out after 0.1 s."""
    return Ledger(redis, settings.model_copy(update={"lease_ttl_s": 0.1, "retry_delay_s": 0.0}))


def test_a_job_walks_from_prepare_over_shards_to_merge(
    ledger: Ledger, make_submission: Make
) -> None:
    job = make_submission()
    assert ledger.create(job)
    assert not ledger.create(job)
    prepare = lease(ledger, job.id)
    assert (prepare.item, prepare.tries) == ("prepare", 1)
    assert isinstance(ledger.lease(job.id, worker="x"), Busy)
    ledger.commit(prepare, "ok", next_items=[f"shard:{k}" for k in range(12)], total=120)
    shards = [lease(ledger, job.id) for _ in range(12)]
    assert [shard.item for shard in shards] == [f"shard:{k}" for k in range(12)]
    assert [shard.token for shard in shards] == sorted({shard.token for shard in shards})
    for shard in shards:
        assert isinstance(ledger.lease(job.id, worker="x"), Busy), "merge waits for every shard"
        assert ledger.commit(shard, "digest") == "committed"
    assert len(ledger.results(job.id)) == 13
    merge = lease(ledger, job.id)
    assert merge.item == "merge"
    assert ledger.commit(merge, "digest") == "committed"
    assert ledger.finish(job.id, "succeeded") == "succeeded"
    assert ledger.lease(job.id, worker="w") == NoWork("finished")
    assert ledger.index.active() == set()


def test_a_lease_that_ran_out_goes_to_somebody_else_and_the_first_commit_wins(
    impatient: Ledger, make_submission: Make
) -> None:
    job = make_submission()
    impatient.create(job)
    late = lease(impatient, job.id)
    time.sleep(0.15)
    successor = lease(impatient, job.id, "other")
    assert successor.item == late.item
    assert successor.token > late.token
    assert not impatient.renew(late).valid
    assert impatient.renew(successor).valid
    assert impatient.commit(late, "first") == "committed", "a late winner is welcome"
    assert impatient.commit(successor, "second") == "duplicate"
    assert impatient.results(job.id) == {"prepare": "first"}


def test_a_renewed_lease_does_not_run_out(
    redis: Redis, ledger: Ledger, make_submission: Make
) -> None:
    job = make_submission()
    ledger.create(job)
    held = lease(ledger, job.id)
    for _ in range(5):
        redis.zadd(f"certserve:job:{job.id}:free", {held.item: 0})  # its time is over
        assert ledger.renew(held).valid
    assert isinstance(ledger.lease(job.id, worker="x"), Busy)


def test_an_item_is_given_out_three_times_and_no_more(
    impatient: Ledger, make_submission: Make
) -> None:
    job = make_submission()
    impatient.create(job)
    for tries in (1, 2, 3):
        held = lease(impatient, job.id)
        assert held.tries == tries
        assert impatient.release(held, error=f"boom {tries}")
        assert not impatient.release(held, error="again"), "a lease is given back once"
    assert impatient.lease(job.id, worker="w") == Exhausted("prepare", 3, "boom 3")
    (seen,) = impatient.survey([job.id])
    assert seen.exhausted == Exhausted("prepare", 3, "boom 3")


def test_an_item_that_gets_on_may_lose_any_number_of_workers(
    impatient: Ledger, make_submission: Make
) -> None:
    job = make_submission()
    impatient.create(job)
    for tries in (1, 2, 2, 2, 2):
        held = lease(impatient, job.id)
        assert held.tries == tries
        assert impatient.renew(held, progressed=True).valid
        assert impatient.release(held, error="killed")
        assert not impatient.renew(held, progressed=True).valid, "it is nobody's lease any more"
    for tries in (2, 3):
        held = lease(impatient, job.id)
        assert held.tries == tries
        assert impatient.release(held, error="killed")
    assert impatient.lease(job.id, worker="w") == Exhausted("prepare", 3, "killed")


def test_a_worker_that_drains_does_not_use_up_a_try(
    impatient: Ledger, make_submission: Make
) -> None:
    job = make_submission()
    impatient.create(job)
    for _ in range(5):
        held = lease(impatient, job.id)
        assert held.tries == 1
        impatient.release(held, delay_s=0, counts=False)


def test_what_is_done_for_good_forgives_the_tries_before_it(
    impatient: Ledger, make_submission: Make
) -> None:
    """A training of days may lose more workers than ``max_attempts``, a few in one stretch not."""
    job = make_submission()
    impatient.create(job)
    for _ in range(4):
        impatient.release(lease(impatient, job.id), delay_s=0, error="died")
        held = lease(impatient, job.id)
        assert held.tries == 2
        impatient.release(held, delay_s=0, counts=False, progressed=True)
    assert lease(impatient, job.id).tries == 1


def test_a_new_unit_begins_at_nothing(ledger: Ledger, make_submission: Make) -> None:
    """A training's steps are not counted as samples of its certification."""
    job = make_submission()
    ledger.create(job)
    held = lease(ledger, job.id)
    ledger.progress(job.id, held.item, 20, total=20, unit="steps")
    ledger.commit(held, "done", next_items=["shard:0"], total=500)
    state = ledger.get(job.id)
    assert state is not None
    assert (state.progress.done, state.progress.total, state.progress.unit) == (0, 500, "samples")


def test_terminal_states_never_change(ledger: Ledger, make_submission: Make) -> None:
    job = make_submission()
    ledger.create(job)
    lease(ledger, job.id)
    assert ledger.finish(job.id, "failed", error={"code": "x"}) == "failed"
    assert ledger.finish(job.id, "succeeded") == "failed"
    ledger.progress(job.id, "shard:0", 5)
    state = ledger.get(job.id)
    assert state is not None
    assert (state.status, state.error, state.progress.done) == ("failed", {"code": "x"}, 0)
    assert ledger.finish("0" * 26, "failed") == "unknown"


def test_progress_is_the_sum_over_items_and_carries_an_eta(
    ledger: Ledger, make_submission: Make
) -> None:
    job = make_submission()
    ledger.create(job)
    ledger.commit(lease(ledger, job.id), "ok", next_items=["shard:0", "shard:1"], total=100)
    time.sleep(0.05)
    ledger.progress(job.id, "shard:0", 30)
    ledger.progress(job.id, "shard:1", 10)
    ledger.progress(job.id, "shard:0", 40, message="bounds")
    state = ledger.get(job.id)
    assert state is not None
    assert (state.progress.done, state.progress.total) == (50, 100)
    assert state.progress.message == "bounds"
    assert state.progress.eta_s is not None


def test_what_is_done_once_before_the_samples_is_not_taken_for_their_pace(
    ledger: Ledger, make_submission: Make
) -> None:
    """Minutes of operator norms, then a hundred samples in a moment: no hours are left."""
    job = make_submission()
    ledger.create(job)
    ledger.commit(lease(ledger, job.id), "ok", next_items=["shard:0"], total=100)
    ledger.progress(job.id, "shard:0", None, message="operator norms")
    time.sleep(0.5)
    ledger.progress(job.id, "shard:0", 0, message="bounds")
    time.sleep(0.05)
    ledger.progress(job.id, "shard:0", 10, message="bounds")
    state = ledger.get(job.id)
    assert state is not None
    assert state.progress.eta_s is not None
    assert 9 * 0.05 - 0.1 <= state.progress.eta_s < 9 * 0.5
    # Another shard's norms, once samples are done, change nothing.
    time.sleep(0.5)
    ledger.progress(job.id, "shard:1", None, message="operator norms")
    state = ledger.get(job.id)
    assert state is not None
    assert state.progress.eta_s is not None
    assert state.progress.eta_s >= 9 * 0.5


def test_a_training_taken_up_again_keeps_its_steps_and_takes_nobody_for_fast(
    ledger: Ledger, make_submission: Make
) -> None:
    """What the next worker says before its first step; an eta from the job's age would be of
    hours that were no work, or (after a retry) of none at all."""
    job = make_submission()
    ledger.create(job)
    held = lease(ledger, job.id)
    ledger.progress(job.id, held.item, 900, total=1000, unit="steps", message="a", eta_s=10.0)
    ledger.release(held, delay_s=0, counts=False)
    held = lease(ledger, job.id)
    ledger.progress(job.id, held.item, None, unit="steps", message="reading the data set")
    state = ledger.get(job.id)
    assert state is not None
    progress = state.progress
    assert (progress.done, progress.total, progress.unit) == (900, 1000, "steps")
    assert (progress.message, progress.eta_s) == ("reading the data set", None)
    ledger.progress(job.id, held.item, 905, total=1000, unit="steps", message="b")
    state = ledger.get(job.id)
    assert state is not None
    assert (state.progress.done, state.progress.eta_s) == (905, None)


def test_sixteen_greedy_workers_share_the_items_without_doubling_one(
    redis: Redis, settings: Settings, make_submission: Make
) -> None:
    ledger = Ledger(redis, settings)
    job = make_submission()
    ledger.create(job)
    names = [f"shard:{k}" for k in range(100)]
    ledger.commit(lease(ledger, job.id), "ok", next_items=names, total=100)
    taken: Counter[str] = Counter()

    def work() -> None:
        while isinstance(found := ledger.lease(job.id, worker="w"), Lease):
            taken[found.item] += 1
            ledger.commit(found, "ok")

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken == Counter([*names, "merge"])


def test_jobs_are_listed_newest_first_by_kind_and_status_in_pages(
    ledger: Ledger, make_submission: Make
) -> None:
    jobs = []
    for number in range(7):
        job = make_submission(kind="train" if number % 3 == 0 else "certify")
        jobs.append(job)
        ledger.create(job)
        time.sleep(0.002)
    newest = [job.id for job in reversed(jobs)]
    first = ledger.index.ids(before=None, limit=4)
    assert first == newest[:4]
    assert ledger.index.ids(before=first[-1], limit=4) == newest[4:]
    trains = [job.id for job in reversed(jobs) if job.kind == "train"]
    assert ledger.index.ids(kind="train", before=None, limit=9) == trains
    ledger.finish(trains[0], "cancelled")
    assert ledger.index.ids(kind="train", statuses=["queued"], before=None, limit=9) == trains[1:]
    assert ledger.index.ids(statuses=["cancelled"], before=None, limit=9) == trains[:1]


def test_workers_are_forgotten_when_they_fall_silent(redis: Redis, settings: Settings) -> None:
    ledger = Ledger(redis, settings.model_copy(update={"worker_ttl_s": 900.0}))
    ledger.worker_registry.heartbeat("a", {"host": "h", "device": "cpu"})
    assert ledger.worker_registry.living() == [{"name": "a", "host": "h", "device": "cpu"}]
    assert 0 < redis.pttl("certserve:worker:a") <= 900_000
    redis.pexpire("certserve:worker:a", 1)  # as if they were over
    eventually(lambda: not redis.exists("certserve:worker:a"))
    assert ledger.worker_registry.living() == []
    ledger.worker_registry.heartbeat("a", {"host": "h"})
    ledger.worker_registry.deregister("a")
    assert ledger.worker_registry.living() == []


def test_a_redis_that_lost_its_data_is_noticed(ledger: Ledger, redis: Redis) -> None:
    name = ledger.memory.name()
    assert ledger.memory.name() == name
    redis.flushall()
    assert ledger.memory.name() != name
