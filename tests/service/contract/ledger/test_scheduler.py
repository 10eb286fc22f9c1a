"""Who comes next: small before large, nobody for ever last, long items asked to give way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis

from service.contract.ledger.ledger import Lease, Ledger
from service.contract.ledger.scheduler import MAX_DELAY_S, Next, scheduling_delay
from service.contract.schemas.submissions import DatasetSource, JobSubmission, Spec
from service.contract.settings import Settings
from service.contract.times import now, rfc3339

Make = Callable[..., JobSubmission]


@pytest.fixture
def certify(make_submission: Make) -> Make:
    """Makes a certification of ``samples`` samples that came in ``age_s`` ago."""

    def make(samples: int | str = 1000, age_s: float = 0.0) -> JobSubmission:
        spec = Spec.model_validate({"norm": "l2", "epsilons": [0.1], "samples": samples})
        return make_submission(spec=spec.normal(), created_at=rfc3339(now() - age_s))

    return make


def first(ledger: Ledger) -> str | None:
    return ledger.scheduler.next_job().job_id


def lease(ledger: Ledger, job: JobSubmission) -> Lease:
    found = ledger.lease(job.id, worker="w")
    assert isinstance(found, Lease)
    return found


def test_a_small_job_overtakes_a_large_one_but_not_one_that_waits_for_long(
    ledger: Ledger, certify: Make
) -> None:
    large, old, small = certify(1000), certify(1000, age_s=1100), certify(10)
    for job in (large, old, small):
        ledger.create(job)
    order = []
    while (job_id := first(ledger)) is not None:
        order.append(job_id)
        ledger.finish(job_id, "cancelled")
    assert order == [old.id, small.id, large.id]


def test_nobody_is_overtaken_for_ever(ledger: Ledger, certify: Make) -> None:
    huge = certify("all", age_s=MAX_DELAY_S + 60)
    ledger.create(huge)
    for _ in range(5):
        ledger.create(certify(1))
    assert first(ledger) == huge.id


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1000),
        ({"samples": 10}, 10),
        ({"samples": "all"}, MAX_DELAY_S),
        ({"indices": [3, 5]}, 2),
        ({"samples": 1_000_000}, MAX_DELAY_S),
    ],
)
def test_a_job_is_as_large_as_its_samples(
    make_submission: Make, changes: dict[str, object], expected: float
) -> None:
    spec = Spec.model_validate({"norm": "l2", "epsilons": [0.1], **changes}).normal()
    assert scheduling_delay(make_submission(spec=spec)) == expected
    short = DatasetSource(kind="npz", name="x", samples=7)
    assert scheduling_delay(make_submission(spec=spec, dataset=short)) == min(7, expected)
    assert scheduling_delay(make_submission(spec=spec, kind="train")) == MAX_DELAY_S


def test_what_prepare_finds_out_counts(ledger: Ledger, certify: Make) -> None:
    vague, middle = certify("all"), certify(100)
    ledger.create(vague)
    ledger.create(middle)
    assert first(ledger) == middle.id
    ledger.commit(lease(ledger, vague), "ok", next_items=["shard:0"], total=5)
    assert first(ledger) == vague.id


def test_jobs_without_a_free_item_are_passed_by_until_one_is(
    redis: Redis, settings: Settings, certify: Make
) -> None:
    ledger = Ledger(redis, settings.model_copy(update={"lease_ttl_s": 900.0}))
    small, large = certify(1), certify(50)
    ledger.create(small)
    ledger.create(large)
    lease(ledger, small)
    assert first(ledger) == large.id
    assert ledger.scheduler.next_job(passed_over=[large.id]).job_id is None
    held = lease(ledger, large)
    nobody = ledger.scheduler.next_job()
    assert nobody.job_id is None
    assert nobody.retry_s is not None
    assert 0 <= nobody.retry_s <= 900.0
    redis.zadd(f"certserve:job:{small.id}:free", {"prepare": 0})
    assert first(ledger) == small.id, "its lease ran out"
    assert not ledger.release(held, delay_s=0) or first(ledger) == small.id


def test_what_has_ended_leaves_the_line(redis: Redis, ledger: Ledger, certify: Make) -> None:
    ended, deleted, forgotten = certify(), certify(), certify()
    for job in (ended, deleted, forgotten):
        ledger.create(job)
    ledger.finish(ended.id, "failed")
    ledger.forget(deleted.id)
    redis.delete(f"certserve:job:{forgotten.id}", f"certserve:job:{forgotten.id}:free")
    assert ledger.scheduler.next_job() == Next(None, None)
    assert redis.zcard(ledger.scheduler.key) == 0
    again = ended.model_copy(update={"attempt": 2})
    assert ledger.reopen(again)
    assert first(ledger) == ended.id


def test_a_long_line_is_walked_to_its_end(redis: Redis, ledger: Ledger, certify: Make) -> None:
    taken = [certify(1) for _ in range(250)]
    for job in taken:
        ledger.create(job)
        lease(ledger, job)
    # Also where the walk takes out entries as it goes.
    for job in taken[:120]:
        redis.delete(f"certserve:job:{job.id}", f"certserve:job:{job.id}:free")
    last = certify(500)
    ledger.create(last)
    assert first(ledger) == last.id
    assert redis.zcard(ledger.scheduler.key) == 131


def test_training_is_told_when_somebody_smaller_waits(
    ledger: Ledger, make_submission: Make, certify: Make
) -> None:
    training = make_submission(kind="train", created_at=rfc3339(now() - 60))
    ledger.create(training)
    held = lease(ledger, training)
    waits = ledger.scheduler.somebody_waits
    assert not waits(training.id)
    fresh = certify(100)
    ledger.create(fresh)
    assert not waits(training.id), "an idle worker is about to take it"
    assert waits(training.id, waited_s=0)
    ledger.create(waiting := certify(100, age_s=30))
    assert waits(training.id)
    assert ledger.release(held, delay_s=0, counts=False)
    assert first(ledger) == waiting.id
    other = lease(ledger, waiting)
    assert not waits(training.id), "somebody works on it"
    ledger.finish(waiting.id, "succeeded")
    ledger.finish(fresh.id, "succeeded")
    assert ledger.commit(other, "late") == "finished"
    assert first(ledger) == training.id
    assert lease(ledger, training).tries == 1, "giving way is no try"


def test_training_that_waits_for_long_does_not_give_way(
    ledger: Ledger, make_submission: Make, certify: Make
) -> None:
    training = make_submission(kind="train", created_at=rfc3339(now() - 2 * MAX_DELAY_S))
    ledger.create(training)
    lease(ledger, training)
    ledger.create(certify(1, age_s=60))
    assert not ledger.scheduler.somebody_waits(training.id)


def test_a_training_waits_for_a_worker_that_owns_its_devices_and_keeps_nobody_waiting(
    ledger: Ledger, make_submission: Make
) -> None:
    ages = {"large": 60.0, "small": 30.0}
    large, small = (
        make_submission(
            kind="train", training={"devices": count}, created_at=rfc3339(now() - ages[name])
        )
        for name, count in (("large", 4), ("small", 1))
    )
    ledger.create(large)
    ledger.create(small)
    scheduler = ledger.scheduler
    assert [scheduler.next_job(devices=n).job_id for n in (1, 3)] == [small.id, small.id]
    assert scheduler.next_job(devices=4).job_id == large.id
    held = lease(ledger, small)
    assert scheduler.next_job(devices=3).job_id is None
    assert scheduler.somebody_waits(small.id, devices=4)
    assert not scheduler.somebody_waits(small.id, devices=3)
    # What comes after the training needs no devices.
    trained = lease(ledger, large)
    ledger.commit(trained, "model", next_items=["prepare"])
    assert scheduler.next_job(devices=1).job_id == large.id
    assert ledger.release(held, delay_s=0)
    again = large.model_copy(update={"attempt": 2})
    ledger.finish(large.id, "failed")
    assert ledger.reopen(again)
    assert scheduler.next_job(devices=1).job_id == small.id
