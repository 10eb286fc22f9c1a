"""Jobs are waited for, listed and served while Redis is away."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import httpx

from service.contract.ledger.connection import connect
from service.contract.ledger.ledger import Ledger
from service.contract.settings import Settings
from service.contract.storage.store import Store
from tests.service.conftest import Make, RedisServer, eventually, finish


def test_submissions_and_results_survive_a_dead_redis(
    quick: Settings, serve: Any, redis_server: RedisServer, store: Store, accept: Make
) -> None:
    api = serve(quick)
    ended = accept()
    client = connect(quick)
    finish(store, Ledger(client, quick), ended)
    files = {
        "model": ("n.onnx", bytes([0x08, 8, 0x3A, 0])),
        "dataset_id": (None, "digits"),
        "spec": (None, '{"norm": "linf", "epsilons": [0.1]}'),
    }
    redis_server.kill()
    answer = api.post("/certify", files=files)
    assert answer.status_code == 202, answer.text
    assert api.get(f"/jobs/{ended.id}/report").json()["job_id"] == ended.id
    away = api.get(f"/jobs/{answer.json()['id']}")
    assert (away.status_code, away.json()["code"]) == (503, "redis_unavailable")
    ready = api.get("/readyz").json()
    assert ready["missing"] == ["redis", "workers"]
    assert api.get("/healthz").status_code == 200
    redis_server.start()  # nothing was persisted: everything comes back from the journal
    found = eventually(lambda: api.get(f"/jobs/{answer.json()['id']}").status_code == 200)
    assert found
    assert {row["id"] for row in eventually(lambda: api.get("/jobs").json()["items"])} >= {
        answer.json()["id"]
    }


def test_waiting_for_a_job_ends_when_it_does(
    api: httpx.Client, store: Store, ledger: Ledger, accept: Make
) -> None:
    job = accept()
    ledger.create(job)
    begun = time.monotonic()
    assert api.get(f"/jobs/{job.id}?wait=0.3").json()["status"] == "queued"
    assert time.monotonic() - begun >= 0.3
    timer = threading.Timer(0.3, finish, (store, ledger, job))
    timer.start()
    begun = time.monotonic()
    assert api.get(f"/jobs/{job.id}?wait=50").json()["status"] == "succeeded"
    assert time.monotonic() - begun < 50
    timer.join()


def test_a_submission_may_wait_for_its_end(
    api: httpx.Client, store: Store, ledger: Ledger, make_submission: Make
) -> None:
    files = {
        "model": ("n.onnx", bytes([0x08, 8, 0x3A, 0])),
        "dataset_id": (None, "digits"),
        "spec": (None, '{"norm": "linf", "epsilons": [0.1]}'),
    }
    answer = api.post("/certify", files=files, headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=1")

    other = {**files, "spec": (None, '{"norm": "linf", "epsilons": [0.2]}')}
    answered = threading.Event()

    def end_all() -> None:
        while not answered.wait(0.05):
            for job_id in ledger.index.active():
                state = ledger.get(job_id)
                assert state is not None
                finish(store, ledger, state.submission)

    thread = threading.Thread(target=end_all)
    thread.start()
    # Another one than before, whose result could be used again at once.
    answer = api.post("/certify", files=other, headers={"Prefer": "respond-async, wait=50"})
    answered.set()
    thread.join()
    assert "certserve-submission" not in answer.headers
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")


def test_jobs_are_listed_in_pages(api: httpx.Client, ledger: Ledger, make_submission: Make) -> None:
    jobs = [make_submission() for _ in range(5)]
    for job in jobs:
        ledger.create(job)
    ledger.finish(jobs[0].id, "cancelled")
    expected = sorted((job.id for job in jobs), reverse=True)
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = api.get("/jobs", params=query).json()
        seen += [row["id"] for row in page["items"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert seen == expected
    assert len(api.get("/jobs?status=queued&kind=certify").json()["items"]) == 4
    assert api.get("/jobs?kind=train").json() == {"items": [], "next_cursor": None}


def test_ready_names_what_is_missing(api: httpx.Client, ledger: Ledger) -> None:
    answer = api.get("/readyz")
    assert (answer.status_code, answer.json()["missing"]) == (503, ["workers"])
    ledger.worker_registry.heartbeat("w1", {"host": "here"})
    assert api.get("/readyz").status_code == 200


def test_a_redis_that_hangs_is_not_waited_for(
    api: httpx.Client, redis_server: RedisServer, settings: Settings
) -> None:
    assert redis_server.process is not None
    redis_server.process.send_signal(signal.SIGSTOP)
    try:
        # 2 s of patience; a slow machine has 58 more, and a client that waited as workers do 90.
        answer = api.get("/readyz", timeout=60)
    finally:
        redis_server.process.send_signal(signal.SIGCONT)
    assert "redis" in answer.json()["missing"]
