"""The hub of events: every event once and in order for everybody, made once for all of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis import Redis

from service.contract.ledger.event_stream import EventLog
from service.contract.ledger.ledger import Lease, Ledger
from service.contract.outcomes import conclude, outcome_state
from service.contract.schemas.problems import TooManyRequests
from service.contract.schemas.submissions import JobSubmission
from service.contract.storage.store import Store
from service.jobs import event_hub
from service.jobs.event_hub import EventBatch, EventHub
from tests.service.conftest import WAIT_S

Told = list[EventBatch]


@pytest.fixture
def hub(redis: Redis, store: Store) -> EventHub:
    return EventHub(EventLog(redis), store, quiet_s=0.3, max_viewers=1000)


@pytest.fixture
def job(ledger: Ledger, make_submission: Callable[..., JobSubmission]) -> JobSubmission:
    job = make_submission()
    ledger.create(job)
    assert isinstance(ledger.lease(job.id, worker="w"), Lease)
    return job


async def watch(
    hub: EventHub, ledger: Ledger, job: JobSubmission, told: Told, after: str = ""
) -> None:
    """Collects what a viewer is told until its stream ends."""
    state = ledger.get(job.id)
    assert state is not None
    events = await hub.follow(state, after)
    assert events is not None
    async for batch in events:
        told.append(batch)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every look of the hub at an outcome on disk."""
    looks: list[str] = []

    def look(store: Store, job_id: str) -> Any:
        looks.append(job_id)
        return outcome_state(store, job_id)

    with monkeypatch.context() as patched:
        patched.setattr(event_hub, "outcome_state", look)
        yield looks


def ids(told: Told) -> list[str]:
    return [event.id for batch in told for event in batch.events]


def test_whoever_comes_when_is_told_every_event_once_and_in_order(
    hub: EventHub, redis: Redis, store: Store, ledger: Ledger, job: JobSubmission
) -> None:
    draw = random.Random(7)
    viewers: list[Told] = [[] for _ in range(40)]

    async def late(told: Told, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        await watch(hub, ledger, job, told)

    async def run() -> None:
        tasks = [asyncio.create_task(late(told, 2.5 * draw.random())) for told in viewers]
        for step in range(60):
            ledger.progress(job.id, "prepare", step, total=60)
            await asyncio.sleep(0.1 * draw.random())
        conclude(store, ledger, job, "succeeded")
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*tasks)
        await hub.close()

    asyncio.run(run())
    happened = EventLog(redis).after(job.id, "")
    assert len(happened) == 63
    assert all(ids(told) == [event.id for event in happened] for told in viewers)
    assert hub.viewers == 0


def test_a_batch_is_one_text_for_all_who_wait(
    hub: EventHub, store: Store, ledger: Ledger, job: JobSubmission
) -> None:
    viewers: list[Told] = [[] for _ in range(30)]

    async def run() -> None:
        tasks = [asyncio.create_task(watch(hub, ledger, job, told)) for told in viewers]
        await until(lambda: all(told for told in viewers))  # what there was before them
        before = [len(told) for told in viewers]
        for step in range(5):
            ledger.progress(job.id, "prepare", step, total=5)
        await until(lambda: all(ids(told[n:]) for told, n in zip(viewers, before, strict=True)))
        fresh = [[b for b in told[n:] if b.events] for told, n in zip(viewers, before, strict=True)]
        # Events that come together are one message, the same object for everybody.
        assert all(len(batches) == 1 for batches in fresh)
        assert len({id(batches[0].text) for batches in fresh}) == 1
        assert fresh[0][0].text.count(b"event: progress\n") == 5
        conclude(store, ledger, job, "cancelled")
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*tasks)
        await hub.close()

    asyncio.run(run())
    assert all(told[-1].last for told in viewers)


def test_viewers_of_a_quiet_job_share_the_look_at_the_disk(
    hub: EventHub,
    store: Store,
    ledger: Ledger,
    redis: Redis,
    job: JobSubmission,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    viewers: list[Told] = [[] for _ in range(30)]

    async def run(looks: list[str]) -> None:
        tasks = [asyncio.create_task(watch(hub, ledger, job, told)) for told in viewers]
        await until(lambda: all(told and not told[-1].events for told in viewers))
        assert len(looks) <= 3  # one each would be 30
        redis.flushall()
        conclude(store, ledger, job, "failed")
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*tasks)
        await hub.close()

    with counted(monkeypatch) as looks:
        asyncio.run(run(looks))
    # Redis lost the job: its end is told from the disk.
    assert all(told[-1].events[-1].data == {"status": "failed"} for told in viewers)


def test_an_id_from_the_future_does_not_keep_a_stream_open_for_ever(
    hub: EventHub, store: Store, ledger: Ledger, job: JobSubmission
) -> None:
    told: Told = []

    async def run() -> None:
        task = asyncio.create_task(watch(hub, ledger, job, told, "99999999999999-0"))
        await until(lambda: told)
        conclude(store, ledger, job, "succeeded")
        async with asyncio.timeout(WAIT_S):
            await task
        await hub.close()

    asyncio.run(run())
    assert told[-1].events[-1].data == {"status": "succeeded"}


def test_a_viewer_who_does_not_read_is_sent_away(
    hub: EventHub, ledger: Ledger, job: JobSubmission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_hub, "_BACKLOG", 20)

    async def run() -> None:
        state = ledger.get(job.id)
        assert state is not None
        slow, other = await hub.follow(state, ""), []
        assert slow is not None
        assert (await anext(slow)).events
        task = asyncio.create_task(watch(hub, ledger, job, other))
        await until(lambda: other)
        ledger.progress(job.id, "prepare", 0, total=30)
        await until(lambda: len(ids(other)) == 3)
        for step in range(30):
            ledger.progress(job.id, "prepare", step, total=30)
        await until(lambda: len(ids(other)) == 33)  # many at once send nobody away who reads
        assert [batch async for batch in slow] == []
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await hub.close()

    asyncio.run(run())


def test_the_more_viewers_the_longer_between_two_messages_and_there_is_an_end_to_them(
    redis: Redis, store: Store
) -> None:
    hub = EventHub(EventLog(redis), store, quiet_s=9, max_viewers=3)
    assert hub.pause_s == 0.5
    for viewers in (100, 200, 2000):
        hub.viewers = viewers
        assert viewers / hub.pause_s <= 200  # messages per second
        with pytest.raises(TooManyRequests):
            hub.check_room()
    hub.viewers = 2
    with hub.viewer(), pytest.raises(TooManyRequests):
        hub.check_room()
    hub.check_room()
