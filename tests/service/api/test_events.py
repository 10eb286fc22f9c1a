"""Server-sent events: complete, resumable, ended by the job's end, and cheap for many viewers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from redis import Redis

from service.contract.ledger.ledger import Lease, Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from service.contract.storage.store import Store
from tests.service.conftest import WAIT_S, eventually

Make = Callable[..., JobSubmission]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"reconcile_interval_s": 0.1, "keep_alive_s": 0.4})


@pytest.fixture
def job(ledger: Ledger, make_submission: Make) -> JobSubmission:
    job = make_submission()
    ledger.create(job)
    return job


def follow(
    api: httpx.Client,
    job: JobSubmission,
    last_id: str = "",
    see: Callable[[dict[str, Any]], None] = lambda event: None,
) -> list[dict[str, Any]]:
    """All events until the stream ends; keep-alives are counted under the type ``comment``.

    ``see`` is called with each of them as it comes.
    """
    events: list[dict[str, Any]] = []
    headers = {"Last-Event-ID": last_id} if last_id else {}
    with api.stream("GET", f"/jobs/{job.id}/events", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        event: dict[str, Any] = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if line.startswith(":"):
                events.append({"type": "comment"})
                see(events[-1])
            elif name == "id":
                event["id"] = value
            elif name == "event":
                event["type"] = value
            elif name == "data":
                events.append({**event, "data": json.loads(value)})
                see(events[-1])
    return events


def told(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] != "comment"]


def once(kind: str, thread: threading.Thread) -> Callable[[dict[str, Any]], None]:
    """Starts the thread when the viewer sees its first event of that kind."""

    def see(event: dict[str, Any]) -> None:
        if event["type"] == kind and thread.ident is None:
            thread.start()

    return see


def do_work(store: Store, ledger: Ledger, job: JobSubmission, pause_s: float = 0.02) -> None:
    lease = ledger.lease(job.id, worker="w")
    assert isinstance(lease, Lease)
    ledger.commit(lease, "facts", next_items=["shard:0"], total=50)
    shard = ledger.lease(job.id, worker="w")
    assert isinstance(shard, Lease)
    for done in range(10, 60, 10):
        time.sleep(pause_s)
        ledger.progress(job.id, "shard:0", done, message="certifying")
    conclude(store, ledger, job, "succeeded", samples=50)


def test_a_viewer_sees_everything_in_order_and_the_stream_ends(
    api: httpx.Client, store: Store, ledger: Ledger, job: JobSubmission
) -> None:
    assert api.get(f"/jobs/{job.id}").json()["links"]["events"] == f"/jobs/{job.id}/events"
    worker = threading.Thread(target=do_work, args=(store, ledger, job, 0.2))
    # Nothing happens until the viewer was told so.
    all_events = follow(api, job, see=once("comment", worker))
    worker.join()
    assert all_events[1]["type"] == "comment"
    events = told(all_events)
    statuses = [event["data"]["status"] for event in events if event["type"] == "status"]
    assert statuses == ["queued", "running", "succeeded"]
    progress = [event["data"] for event in events if event["type"] == "progress"]
    assert [data["done"] for data in progress] == [10, 20, 30, 40, 50]
    assert all(data["total"] == 50 for data in progress)
    etas = [data["eta_s"] for data in progress]
    # 40 of 50 are left, and 10 took as long as it was between two entries of the stream.
    began, first = (_moment(event) for event in (events[1], events[2]))
    assert 4 * 0.2 - 0.1 <= etas[0] <= 4 * (first - began) + 0.1
    assert etas[-1] == 0
    late = told(follow(api, job))  # a late viewer is told the same
    assert late[:-1] == events[:-1]
    # But for the id of the end: a viewer that looks between disk and stream learns it from disk.
    assert late[-1]["data"] == events[-1]["data"]


def _moment(event: dict[str, Any]) -> float:
    """Seconds: an id of a stream begins with milliseconds."""
    return int(event["id"].partition("-")[0]) / 1000


def test_a_viewer_resumes_where_it_was(
    api: httpx.Client, store: Store, ledger: Ledger, job: JobSubmission
) -> None:
    do_work(store, ledger, job)
    events = follow(api, job)
    for place in (0, 3, len(events) - 2):
        assert follow(api, job, events[place]["id"]) == events[place + 1 :]
    over = api.get(f"/jobs/{job.id}/events", headers={"Last-Event-ID": events[-1]["id"]})
    assert over.status_code == 204  # so that a browser does not come back for ever
    assert follow(api, job, "nonsense") == events


def test_the_end_is_told_although_redis_lost_the_stream(
    api: httpx.Client, store: Store, ledger: Ledger, redis: Redis, job: JobSubmission
) -> None:
    def lose() -> None:
        redis.flushall()
        # A worker that knows the job still ends it: the disk has the last word.
        conclude(store, ledger, job, "succeeded")

    loss = threading.Thread(target=lose)
    events = told(follow(api, job, see=once("status", loss)))
    loss.join()
    assert events[-1]["data"] == {"status": "succeeded"}
    redis.flushall()
    (last,) = told(follow(api, job))
    assert last["data"] == {"status": "succeeded"}


def test_a_retried_job_can_be_followed_again(
    api: httpx.Client, store: Store, ledger: Ledger, job: JobSubmission
) -> None:
    conclude(store, ledger, job, "cancelled")
    assert told(follow(api, job))[-1]["data"] == {"status": "cancelled"}
    assert api.post(f"/jobs/{job.id}/retry").status_code == 202
    state = ledger.get(job.id)
    assert state is not None
    worker = threading.Thread(target=do_work, args=(store, ledger, state.submission))
    events = told(follow(api, job, see=once("status", worker)))
    worker.join()
    assert [e["data"]["status"] for e in events if e["type"] == "status"] == [
        "queued",
        "running",
        "succeeded",
    ]


def test_many_viewers_are_one_connection(
    settings: Settings,
    serve: Callable[[Settings], httpx.Client],
    store: Store,
    ledger: Ledger,
    redis: Redis,
    make_submission: Make,
) -> None:
    # One round of the reconciler, at the start: after that viewers alone make Redis work.
    api = serve(settings.model_copy(update={"reconcile_interval_s": 3600.0}))
    eventually(ledger.memory.complete)
    jobs = [make_submission() for _ in range(5)]
    for job in jobs:
        ledger.create(job)
    seen: list[list[dict[str, Any]]] = []
    settled = [threading.Event() for _ in range(60)]

    def watch(number: int) -> None:
        def see(event: dict[str, Any]) -> None:
            if event["type"] == "comment":  # a quiet while: what was there has been read
                settled[number].set()

        seen.append(told(follow(api, jobs[number % 5], see=see)))

    before = len(redis.client_list())
    viewers = [threading.Thread(target=watch, args=(number,)) for number in range(60)]
    for viewer in viewers:
        viewer.start()
    for event in settled:
        assert event.wait(WAIT_S)
    # At most the connections of the threads, not one per viewer.
    assert len(redis.client_list()) - before <= 45 < len(viewers)
    began, count = time.monotonic(), commands(redis)
    time.sleep(1.0)
    count = commands(redis) - count
    # Four looks a second, not 60 viewers' worth.
    assert count <= 4 * (time.monotonic() - began) + 25
    for job in jobs:
        do_work(store, ledger, job)
    for viewer in viewers:
        viewer.join(timeout=WAIT_S)
    assert len(seen) == 60
    assert all(events[-1]["data"] == {"status": "succeeded"} for events in seen)
    assert all(len(events) == 8 for events in seen)


def commands(redis: Redis) -> int:
    return int(redis.info("stats")["total_commands_processed"])


def test_too_many_viewers_are_told_to_come_later(
    settings: Settings, serve: Callable[[Settings], httpx.Client], job: JobSubmission
) -> None:
    api = serve(settings.model_copy(update={"max_event_streams": 1}))
    with api.stream("GET", f"/jobs/{job.id}/events") as first:
        lines = first.iter_lines()  # without a name it would be closed at once
        assert next(lines)
        refused = api.get(f"/jobs/{job.id}/events")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")

    def let_in() -> bool:
        with api.stream("GET", f"/jobs/{job.id}/events") as next_one:
            return next_one.status_code == 200

    eventually(let_in)  # the place is free again once the first viewer has left
