"""Jobs survive a lost Redis, lost tickets and dying workers; results are served in every form."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from redis import Redis

from service.contract.connection import connect
from service.contract.journal import Journal
from service.contract.ledger import Lease, Ledger
from service.contract.outcomes import conclude, outcome_state
from service.contract.problems import InvalidInput, StorageFull
from service.contract.repeats import Repeats
from service.contract.report import result_digest
from service.contract.schemas import JobSubmission
from service.contract.settings import Settings
from service.contract.store import Store
from service.contract.times import now, rfc3339, seconds
from service.queue import Bell
from service.reconciler import Reconciler
from tests.service.conftest import RedisServer

Make = Callable[..., JobSubmission]


@pytest.fixture
def quick(settings: Settings) -> Settings:
    """Leases of 50 ms, no pause before another try."""
    return settings.model_copy(
        update={"lease_ttl_s": 0.05, "retry_delay_s": 0.0, "reconcile_interval_s": 0.1}
    )


@pytest.fixture
def bell(quick: Settings) -> Iterator[Bell]:
    bell = Bell(connect(quick, text=False), quick)
    yield bell
    bell.close()


@pytest.fixture
def reconciler(quick: Settings, store: Store, redis: Redis, bell: Bell) -> Reconciler:
    return Reconciler(quick, store, Ledger(redis, quick), bell, Repeats(redis))


@pytest.fixture
def accept(store: Store, make_submission: Make) -> Iterator[Make]:
    """Puts a submission into the journal and nowhere else."""
    journal = Journal(store.folder("journal"))

    def accept_one(**changes: object) -> JobSubmission:
        job = make_submission(**changes)
        journal.append(job).result()
        return job

    yield accept_one
    journal.close()


def eventually(condition: Callable[[], Any], *, seconds_: float = 5.0) -> Any:
    deadline = time.monotonic() + seconds_
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
    return value


def finish(store: Store, ledger: Ledger, job: JobSubmission, *, samples: int = 3) -> None:
    """Leave a small report, as a worker's merge does."""
    store.job_dir(job.id)
    rows = [
        {
            "index": k, "label": 1, "prediction": 1, "margin": 0.5, "radius": 0.25 * k,
            "unbounded": False, "method": "lipschitz", "certified": [k > 0], "falsified": [False],
        }
        for k in range(samples)
    ]  # fmt: skip
    store.samples_path(job.id).write_text("".join(json.dumps(row) + "\n" for row in rows))
    store.write_json(store.report_path(job.id), {"schema": "certserve/report/1", "job_id": job.id})
    conclude(store, ledger, job, "succeeded", samples=samples)


def test_an_accepted_job_that_redis_does_not_know_is_entered_and_rung(
    reconciler: Reconciler, ledger: Ledger, bell: Bell, accept: Make
) -> None:
    job = accept()
    reconciler.tick()
    state = ledger.get(job.id)
    assert state is not None
    assert state.submission == job
    assert eventually(bell.waiting)[job.id] >= 1


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
    assert ledger.active() == {opened.id}
    assert isinstance(ledger.lease(opened.id, worker="w"), Lease)


def test_a_lost_ticket_is_rung_again_but_a_waiting_one_is_not_doubled(
    reconciler: Reconciler, bell: Bell, redis: Redis, accept: Make
) -> None:
    job = accept()
    reconciler.tick()
    eventually(lambda: bell.waiting()[job.id])
    for _ in range(5):
        reconciler.tick()
    time.sleep(0.1)
    assert bell.waiting()[job.id] <= 2  # the entry and the first look may both ring
    redis.delete("rq:queue:certserve")
    reconciler.tick()
    eventually(lambda: bell.waiting()[job.id] == 1)


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
    bell: Bell,
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
    assert eventually(lambda: bell.waiting()[other.id])
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


def test_one_ticket_for_every_worker_is_enough(
    reconciler: Reconciler, ledger: Ledger, bell: Bell, redis: Redis, accept: Make
) -> None:
    for name in ("a", "b", "c"):
        ledger.heartbeat(name, {})
    for _ in range(20):
        accept()
    reconciler.tick()
    eventually(lambda: bell.waiting().total() >= 20)
    redis.delete("rq:queue:certserve")
    for _ in range(3):
        reconciler.tick()
        time.sleep(0.1)
        assert bell.waiting().total() == 3


def test_no_more_tickets_than_can_be_of_use(quick: Settings, redis: Redis) -> None:
    bell = Bell(connect(quick, text=False), quick)
    for number in range(300):
        bell.ring(f"{number:026d}")
    bell.close()
    assert 1 <= redis.llen("rq:queue:certserve") <= 64


def test_jobs_of_an_earlier_release_get_their_place_in_the_line(
    reconciler: Reconciler, ledger: Ledger, redis: Redis, accept: Make
) -> None:
    job = accept()
    ledger.create(job)
    redis.delete(ledger.line.key)
    assert ledger.line.next_job().job_id is None
    reconciler.tick()
    assert ledger.line.next_job().job_id == job.id


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
    assert api.get(f"/jobs/{job.id}?wait=20").json()["status"] == "succeeded"
    assert time.monotonic() - begun < 10
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

    def end_all() -> None:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            for job_id in ledger.active():
                state = ledger.get(job_id)
                assert state is not None
                finish(store, ledger, state.submission)
            time.sleep(0.05)

    thread = threading.Thread(target=end_all)
    thread.start()
    answer = api.post("/certify", files=files, headers={"Prefer": "respond-async, wait=20"})
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    thread.join()


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


@pytest.mark.parametrize(
    ("accept_header", "media_type"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/json;q=0.5, text/csv", "text/csv"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("image/*", "image/svg+xml"),
        ("text/*", "text/html"),
        ("application/pdf", None),
        ("application/json;q=0", None),
        ("text/html;q=broken", None),
    ],
)
def test_a_report_comes_in_the_form_asked_for(accept_header: str, media_type: str | None) -> None:
    from service.api.reports import _MEDIA_TYPES, negotiate
    from service.contract.problems import NotAcceptable

    if media_type is None:
        with pytest.raises(NotAcceptable):
            negotiate(accept_header)
    else:
        assert negotiate(accept_header) == _MEDIA_TYPES[media_type]


def test_the_json_report_is_served_byte_for_byte(
    api: httpx.Client, store: Store, ledger: Ledger, accept: Make
) -> None:
    job = accept()
    ledger.create(job)
    early = api.get(f"/jobs/{job.id}/report")
    assert (early.status_code, early.json()["code"]) == (409, "not_finished")
    finish(store, ledger, job)
    for path in ("report", "report.json"):
        answer = api.get(f"/jobs/{job.id}/{path}")
        assert answer.headers["content-type"] == "application/json"
        assert answer.content == store.report_path(job.id).read_bytes()
    assert api.get(f"/jobs/{job.id}/report.pdf").status_code == 422
    pdf = api.get(f"/jobs/{job.id}/report", headers={"accept": "application/pdf"})
    assert (pdf.status_code, pdf.json()["code"]) == (406, "not_acceptable")


def test_a_failed_job_says_why_there_is_no_report(
    api: httpx.Client, store: Store, ledger: Ledger, accept: Make
) -> None:
    job = accept()
    problem = InvalidInput("a Loop", code="unsupported_operator", field="model")
    conclude(store, ledger, job, "failed", error=problem)
    shown = api.get(f"/jobs/{job.id}").json()
    assert shown["error"] == problem.to_dict()
    answer = api.get(f"/jobs/{job.id}/report").json()
    assert answer["code"] == "no_report"
    assert "a Loop" in answer["detail"]


def test_sample_rows_come_in_pages(
    api: httpx.Client, store: Store, ledger: Ledger, accept: Make
) -> None:
    job = accept()
    finish(store, ledger, job, samples=25)
    rows: list[dict[str, Any]] = []
    query: dict[str, Any] = {"limit": 10}
    while True:
        page = api.get(f"/jobs/{job.id}/samples", params=query).json()
        rows += page["items"]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert [row["index"] for row in rows] == list(range(25))
    for cursor in ("1", "99999999", "-1", "x"):
        assert api.get(f"/jobs/{job.id}/samples?cursor={cursor}").status_code == 422


def test_counterexamples_are_served_where_there_are_any(
    api: httpx.Client, store: Store, ledger: Ledger, accept: Make
) -> None:
    job = accept()
    finish(store, ledger, job)
    missing = api.get(f"/jobs/{job.id}/counterexamples.npz")
    assert (missing.status_code, missing.json()["code"]) == (404, "no_counterexamples")
    np.savez(store.counterexamples_path(job.id), x=np.ones(3))
    found = api.get(f"/jobs/{job.id}/counterexamples.npz")
    assert found.content == store.counterexamples_path(job.id).read_bytes()


def test_ready_names_what_is_missing(api: httpx.Client, ledger: Ledger) -> None:
    answer = api.get("/readyz")
    assert (answer.status_code, answer.json()["missing"]) == (503, ["workers"])
    ledger.heartbeat("w1", {"host": "here"})
    assert api.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
        ("GET", "/jobs/nope", 404, "unknown_job"),
        ("GET", "/jobs/" + "0" * 26, 404, "unknown_job"),
        ("GET", "/jobs/..%2f..%2fetc", 404, "not_found"),
        ("GET", "/jobs?limit=0", 422, "invalid_request"),
        ("GET", "/jobs?cursor=x", 422, "invalid_cursor"),
        ("GET", "/jobs?status=odd", 422, "invalid_request"),
        ("GET", "/models/sha256:0", 404, "unknown_model"),
        ("GET", "/models/" + "0" * 64 + "/onnx", 404, "unknown_model"),
        ("GET", "/models?cursor=x", 422, "invalid_cursor"),
        ("GET", "/datasets/x", 404, "unknown_dataset"),
        ("POST", "/models", 400, "invalid_multipart"),
        ("POST", "/certify", 415, "unsupported_media_type"),
    ],
)
def test_every_error_is_a_problem(
    api: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    answer = api.request(method, path)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)


def test_a_wrong_method_is_answered_with_the_right_ones(api: httpx.Client) -> None:
    assert api.delete("/models").headers["allow"] == "GET, POST"
    assert api.get("/certify").headers["allow"] == "POST"


def test_a_model_can_be_uploaded_named_and_fetched_byte_for_byte(api: httpx.Client) -> None:
    data = bytes([0x08, 8, 0x3A, 0])
    files = {"model": ("n.onnx", data), "name": (None, "mine")}
    first = api.post("/models", files=files)
    assert (first.status_code, first.json()["name"]) == (201, "mine")
    assert api.post("/models", files=files).status_code == 200
    shown = api.get(first.headers["location"]).json()
    assert shown == first.json() == api.get("/models").json()["items"][0]
    assert api.get(shown["links"]["onnx"]).content == data
    assert shown["links"]["weights"] is None
    none = api.get(f"/models/{shown['id']}/weights")
    assert (none.status_code, none.json()["code"]) == (404, "no_weights")
    bad = api.post("/models", files={**files, "name": (None, "../x")})
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid_name")


def test_the_openapi_page_describes_the_endpoints(api: httpx.Client) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    assert {"/certify", "/jobs", "/jobs/{job_id}", "/models", "/datasets", "/readyz"} <= set(paths)
    assert api.get("/docs").status_code == 200


def test_every_reference_of_the_openapi_page_leads_somewhere(api: httpx.Client) -> None:
    page = api.get("/openapi.json").json()
    references = set(_references(page))
    assert "#/components/schemas/JsonValue" in references
    for reference in references:
        place = page
        for part in reference.removeprefix("#/").split("/"):
            assert part in place, reference
            place = place[part]


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def test_the_result_digest_ignores_when_and_where_and_nothing_else() -> None:
    report = {"job_id": "a", "timing": {"wall_s": 1}, "method": "auto", "results": [{"n": 1}]}
    same = {"method": "auto", "results": [{"n": 1}], "job_id": "b", "device": "cuda"}
    assert result_digest(report) == result_digest({**same, "created_at": "x", "signature": {}})
    assert result_digest(report) != result_digest({**report, "results": [{"n": 2}]})
    with pytest.raises(ValueError, match="JSON"):
        result_digest({"x": float("nan")})


def test_times_are_rfc_3339_in_utc() -> None:
    moment = now()
    text = rfc3339(moment)
    assert text.endswith("Z")
    assert abs(seconds(text) - moment) < 1e-5
