"""Pages that many people follow: one look and one text for all, and nobody is sent back in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from service.console.app import create_app
from service.console.broadcast import Broadcast, Snapshot
from service.contract.ledger.event_stream import EventLog
from service.contract.ledger.ledger import Ledger
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from service.contract.storage.store import Store
from service.jobs.event_hub import EventHub
from tests.service.conftest import WAIT_S, eventually


class Counter:
    """A page with a number that grows with every look, in a frame."""

    look_s = 0.2
    jobs: Collection[str] = ()

    def __init__(self) -> None:
        self.looks = 0
        self.mark = "a"
        self.failure: Exception | None = None
        self.last = 10**9

    def look(self, changed: Collection[str] | None) -> Snapshot:
        self.looks += 1
        if self.failure is not None:
            raise self.failure
        parts = {"number": str(self.looks), "still": "x"}
        frame = {"frame": f"{self.mark} {self.looks}"}
        return Snapshot(parts, frame, parts, self.mark, ended=self.looks >= self.last)


Follow = Callable[[str | None], AsyncGenerator[bytes]]


def following(
    redis: Redis,
    store: Store,
    source: Counter,
    run: Callable[[Follow], Coroutine[Any, Any, None]],
) -> None:
    """Runs with the streams of a broadcast of that source."""
    hub = EventHub(EventLog(redis), store, quiet_s=9, max_viewers=1000)
    broadcast = Broadcast()

    async def main() -> None:
        async with asyncio.timeout(WAIT_S):
            await run(lambda mark: broadcast.follow(hub, "key", lambda: source, mark=mark))
        await hub.close()

    asyncio.run(main())
    assert hub.viewers == 0


async def drain(texts: AsyncGenerator[bytes]) -> None:
    async for _ in texts:
        pass


def numbers(texts: list[bytes]) -> list[int]:
    parts = b"".join(texts).decode().split("event: number\ndata: ")[1:]
    return [int(part.split("\n")[0]) for part in parts]


def test_viewers_share_looks_and_texts_and_are_never_sent_back(redis: Redis, store: Store) -> None:
    source = Counter()
    viewers: list[list[bytes]] = [[] for _ in range(50)]

    async def view(follow: Follow, texts: list[bytes]) -> None:
        async for text in follow(None):
            texts.append(text)

    async def run(follow: Follow) -> None:
        source.last = 6
        await asyncio.gather(*(view(follow, texts) for texts in viewers))

    following(redis, store, source, run)
    assert source.looks == 6
    for texts in viewers:
        seen = numbers(texts)
        assert seen == sorted(set(seen))
        assert seen[-1] == 6
        # What did not change is not said again.
        assert b"".join(texts).count(b"event: still") == 1
        assert b"event: frame" not in b"".join(texts)
    assert len({id(texts[-1]) for texts in viewers}) == 1


def test_who_comes_later_is_told_what_was_looked_at_after_that(redis: Redis, store: Store) -> None:
    source = Counter()
    source.look_s = 1000.0  # nothing but somebody who comes is a reason to look

    async def run(follow: Follow) -> None:
        async with aclosing(follow(None)) as first:
            await anext(first)
            before = source.looks
            async with aclosing(follow("a")) as same, aclosing(follow("b")) as other:
                texts = await asyncio.gather(anext(same), anext(other))
                assert all(number > before for text in texts for number in numbers([text]))
                assert b"event: frame" not in texts[0]
                # Its frame has the parts in it.
                assert texts[1] == f"event: frame\ndata: a {source.looks}\n\n".encode()
                assert source.looks == before + 1

    following(redis, store, source, run)


def test_who_reads_slowly_gets_what_there_is_and_not_what_there_was(
    redis: Redis, store: Store
) -> None:
    source = Counter()

    async def run(follow: Follow) -> None:
        async with aclosing(follow(None)) as slow, aclosing(follow(None)) as quick:
            first = numbers([await anext(slow)])
            await anext(quick)
            for _ in range(3):
                await anext(quick)
            source.mark = "b"
            text = await anext(quick)
            while b"event: frame" not in text:
                text = await anext(quick)
            text = await anext(slow)
            assert text.startswith(b"event: frame\ndata: b ")
            later = numbers([await anext(slow)])
            assert later > first

    following(redis, store, source, run)


def test_a_page_waits_for_redis_and_other_faults_end_its_streams(
    redis: Redis, store: Store
) -> None:
    source = Counter()

    async def run(follow: Follow) -> None:
        source.failure = RedisConnectionError("away")
        async with aclosing(follow(None)) as waiting:
            text = asyncio.ensure_future(anext(waiting))
            while source.looks == 0:
                await asyncio.sleep(0.01)
            source.failure = None
            assert numbers([await text]) == [source.looks]
            source.failure = RuntimeError("a fault")
            with pytest.raises(RuntimeError, match="a fault"):
                await drain(waiting)
            source.failure = None
            async with aclosing(follow(None)) as again:
                assert numbers([await anext(again)])

    following(redis, store, source, run)


@pytest.fixture
def application() -> Callable[[Settings], FastAPI]:
    return create_app


def test_streams_of_pages_count_as_viewers(
    settings: Settings,
    serve: Callable[[Settings], httpx.Client],
    ledger: Ledger,
    make_submission: Callable[..., JobSubmission],
) -> None:
    job = make_submission()
    ledger.create(job)
    api = serve(settings.model_copy(update={"max_event_streams": 1}))
    eventually(ledger.memory.complete)
    pages = ("/console/jobs/events", f"/jobs/{job.id}/view/events")
    for page in pages:
        with api.stream("GET", page) as first:
            lines = first.iter_lines()
            while next(lines) != "event: hello" and "jobs/events" in page:
                pass

            def refused() -> bool:
                with api.stream("GET", pages[0]) as answer:
                    return answer.status_code == 429

            eventually(refused)
        eventually(lambda: not refused())
