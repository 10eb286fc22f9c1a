"""What a key may use is counted by all API processes together, and alone while Redis is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack

import pytest
from redis import Redis

from service.access.keys import Caller
from service.access.limits import KeyLimits
from service.access.quotas import Quotas
from service.contract.ledger.connection import connect
from service.contract.ledger.ledger import Ledger
from service.contract.schemas.problems import TooManyRequests
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from tests.service.conftest import RedisServer

ANN = Caller("ann")
Process = Callable[..., KeyLimits]


@pytest.fixture
def process(settings: Settings) -> Iterator[Process]:
    """The limits of one more API process: a connection of its own, patient on slow machines."""
    clients: list[Redis] = []

    def make(**changes: object) -> KeyLimits:
        clients.append(connect(settings))
        return KeyLimits(Quotas(clients[-1]), settings.model_copy(update=changes))

    yield make
    for client in clients:
        client.close()


def test_the_rate_is_that_of_all_processes_together(process: Process) -> None:
    rate = 20.0
    processes = [process(key_requests_per_s=rate) for _ in range(3)]

    async def ask() -> tuple[int, list[TooManyRequests]]:
        passed, refused = 0, []
        for _ in range(60):
            for limits in processes:
                try:
                    await limits.count_request(ANN)
                    passed += 1
                except TooManyRequests as problem:
                    refused.append(problem)
        return passed, refused

    began = time.monotonic()
    passed, refused = asyncio.run(ask())
    took = time.monotonic() - began
    assert rate <= passed <= 2 * rate + rate * took + 1
    assert all(problem.code == "rate_limited" for problem in refused)
    assert all(0 <= problem.retry_after_s <= 1 / rate + 0.01 for problem in refused)


def test_many_requests_at_once_are_counted_once_each(process: Process) -> None:
    limits = process(key_requests_per_s=50.0)

    async def ask() -> int:
        asked = [limits.count_request(ANN) for _ in range(400)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(answer is None or isinstance(answer, TooManyRequests) for answer in answers)
        return sum(answer is None for answer in answers)

    began = time.monotonic()
    passed = asyncio.run(ask())
    assert 50 <= passed <= 100 + 50 * (time.monotonic() - began) + 1


def test_without_redis_each_process_counts_alone(
    process: Process, redis_server: RedisServer, make_submission: Callable[..., JobSubmission]
) -> None:
    limits = process(key_requests_per_s=1.0, key_open_jobs=1, key_upload_bytes_per_day=10)
    redis_server.kill()

    async def ask() -> int:
        passed = 0
        for _ in range(50):
            try:
                await limits.count_request(ANN)
                passed += 1
            except TooManyRequests:
                continue
        for _ in range(2):
            async with limits.entering_job(ANN, make_submission().id):
                pass
        return passed

    began = time.monotonic()
    assert 2 <= asyncio.run(ask()) <= 2 + (time.monotonic() - began) + 1
    with limits.upload(ANN, 20) as meter:
        meter.take(20)
    assert limits.uploaded_bytes == 20


def test_jobs_that_enter_at_the_same_moment_count(
    process: Process, ledger: Ledger, make_submission: Callable[..., JobSubmission]
) -> None:
    one, other = process(key_open_jobs=3), process(key_open_jobs=3)
    jobs = [make_submission(principal="ann") for _ in range(5)]

    async def enter() -> None:
        async with AsyncExitStack() as inside:
            for limits, job in ((one, jobs[0]), (other, jobs[1])):
                await inside.enter_async_context(limits.entering_job(ANN, job.id))
            # Refused by the journal: it does not count any more.
            with pytest.raises(OSError):
                async with other.entering_job(ANN, jobs[2].id):
                    raise OSError("no journal")
            await inside.enter_async_context(one.entering_job(ANN, jobs[3].id))
            for entered in (False, True):  # entered, a job counts as open and not twice
                assert ledger.create(jobs[0]) is not entered
                with pytest.raises(TooManyRequests):
                    await inside.enter_async_context(other.entering_job(ANN, jobs[4].id))

    asyncio.run(enter())


def test_bytes_are_granted_before_they_come(process: Process, redis: Redis) -> None:
    one, other = (process(key_upload_bytes_per_day=100) for _ in range(2))
    with one.upload(ANN, 60) as meter:
        with pytest.raises(TooManyRequests) as caught, other.upload(ANN, 60):
            pass
        assert caught.value.code == "upload_quota"
        # Of unknown length: as much as is left, block by block.
        with other.upload(ANN, None) as unknown:
            unknown.take(30)
            with pytest.raises(TooManyRequests):
                unknown.take(30)
        meter.take(10)
    # What did not come after all is given back: 10 and the refused 60 have.
    (key,) = redis.keys("certserve:uploaded:ann:*")
    assert redis.get(key) == "70"
    with one.upload(ANN, 30) as meter:
        meter.take(30)


def test_a_clock_that_is_put_back_locks_nobody_out(redis: Redis) -> None:
    quotas = Quotas(redis)
    later = time.time() + 3600
    redis.hset("certserve:rate:ann", mapping={"tokens": "0", "at": later})
    redis.zadd("certserve:entering:ann", {"lost": later})
    taken, wait_s = quotas.take_requests("ann", per_s=100.0, burst=5.0, most=1)
    assert (taken, wait_s) == (0, pytest.approx(0.01))
    time.sleep(0.02)
    assert quotas.take_requests("ann", per_s=100.0, burst=5.0, most=1) == (1, 0.0)
    assert quotas.admit_job("ann", "one", most=1)
    assert quotas.admit_job("ann", "one", most=1)  # the client asks again where an answer is late
    assert not quotas.admit_job("ann", "two", most=1)


def test_who_is_not_limited_asks_redis_nothing(process: Process, redis: Redis) -> None:
    limits = process(key_requests_per_s=0.001, key_open_jobs=1)
    admin = Caller("admin", admin=True)

    async def ask() -> None:
        for _ in range(5):
            await limits.count_request(admin)
            async with limits.entering_job(admin, "x"):
                pass

    asyncio.run(ask())
    with limits.upload(admin, 10) as meter:
        meter.take(10)
    assert redis.keys("*") == []
