"""Submissions made twice: idempotency keys hold whatever is lost, equal results are used again."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

import service.jobs.submit
from service.contract.ids import new_job_id
from service.contract.ledger.ledger import Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.submissions import DatasetSource, JobSubmission
from service.contract.settings import Settings
from service.contract.storage.store import Store
from service.jobs import idempotency
from service.jobs.idempotency import key_of, result_key
from service.jobs.reconciler import Reconciler
from service.jobs.submit import Submissions
from tests.service.conftest import WAIT_S, RedisServer, eventually

SPEC = {"norm": "l2", "epsilons": [0.5]}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"reconcile_interval_s": 0.1})


@pytest.fixture
def submit(api: httpx.Client) -> Callable[..., httpx.Response]:
    """Submits JSON on one model; ``key`` is the Idempotency-Key, others are members."""
    model = api.post("/models", files={"model": ("n.onnx", bytes([8, 8, 0x3A, 0]))}).json()["id"]

    def send(key: str | None = None, query: str = "", **members: Any) -> httpx.Response:
        body = {"model_id": model, "dataset": "digits", "spec": SPEC, **members}
        headers = {} if key is None else {"Idempotency-Key": key}
        return api.post(f"/certify{query}", json=body, headers=headers)

    return send


def succeed(store: Store, ledger: Ledger, job_id: str) -> None:
    state = ledger.get(job_id)
    assert state is not None
    store.job_dir(job_id)
    store.write_json(store.report_path(job_id), {"job_id": job_id})
    conclude(store, ledger, state.submission, "succeeded", samples=3)


def test_the_same_key_with_the_same_content_is_the_same_job(
    submit: Callable[..., httpx.Response], api: httpx.Client, redis: Redis, ledger: Ledger
) -> None:
    first, again, other = submit("a"), submit("a"), submit("b")
    assert [answer.status_code for answer in (first, again, other)] == [202, 202, 202]
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    assert "certserve-submission" not in first.headers
    assert again.headers["certserve-submission"] == "replayed"
    assert again.headers["location"] == f"/jobs/{first.json()['id']}"
    # What the spec leaves out is its default: the content is the same.
    assert submit("a", spec={**SPEC, "samples": 1000}).json()["id"] == first.json()["id"]
    for changed in ({"spec": {**SPEC, "seed": 1}}, {"spec": {**SPEC, "norm": "linf"}}):
        conflict = submit("a", **changed)
        assert (conflict.status_code, conflict.json()["code"]) == (409, "idempotency_conflict")
    redis.flushall()
    eventually(ledger.memory.complete)
    assert submit("a").json()["id"] == first.json()["id"]
    assert submit("a", spec={**SPEC, "seed": 1}).status_code == 409
    assert len(api.get("/jobs").json()["items"]) == 2


def test_the_key_holds_when_everything_is_restarted(
    settings: Settings,
    serve: Callable[[Settings], httpx.Client],
    submit: Callable[..., httpx.Response],
    api: httpx.Client,
    redis_server: RedisServer,
) -> None:
    first = submit("a").json()
    redis_server.kill()
    away = submit("a")
    assert (away.status_code, away.json()["code"]) == (503, "redis_unavailable")
    redis_server.start()  # it has nothing on disk
    restarted = serve(settings)
    body = {"model_id": first["model_id"], "dataset": "digits", "spec": SPEC}

    def again() -> httpx.Response:
        return restarted.post("/certify", json=body, headers={"Idempotency-Key": "a"})

    eventually(lambda: again().status_code == 202)
    assert again().json()["id"] == first["id"]


def test_a_key_whose_reservation_ran_out_while_no_api_lived_is_still_its_jobs(
    settings: Settings,
    serve: Callable[[Settings], httpx.Client],
    submit: Callable[..., httpx.Response],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Journalled, killed before Redis heard of it, back after the reservation was void."""
    first = submit("a").json()
    (journal,) = store.folder("journal").glob("*.jsonl")
    line = json.loads(journal.read_text())
    assert line["job"]["id"] == first["id"]
    # As the dead process left it: the same line under another id and key, unknown to Redis.
    lost = new_job_id()
    line["job"] |= {"id": lost, "idempotency_key": key_of("", "b")}
    elsewhere = settings.model_copy(update={"data_dir": settings.data_dir.with_name("other")})
    other = Store(elsewhere.data_dir)
    shutil.copytree(store.data_dir / "models", other.data_dir / "models", dirs_exist_ok=True)
    shutil.copytree(store.data_dir / "blobs", other.data_dir / "blobs", dirs_exist_ok=True)
    (other.folder("journal") / "0-a.jsonl").write_text(json.dumps(line) + "\n")
    # The submission comes before the line is read.
    came = threading.Event()
    read, replayed = Reconciler._enter_accepted, Submissions._replayed

    def read_late(reconciler: Reconciler) -> None:
        assert came.wait(WAIT_S)
        read(reconciler)

    async def replayed_once_it_came(submissions: Submissions, *order: Any) -> Any:
        assert not submissions._caught_up()
        came.set()
        return await replayed(submissions, *order)

    monkeypatch.setattr(service.jobs.submit, "_PATIENCE_S", WAIT_S)
    with monkeypatch.context() as patched:
        patched.setattr(Reconciler, "_enter_accepted", read_late)
        patched.setattr(Submissions, "_replayed", replayed_once_it_came)
        body = {"model_id": first["model_id"], "dataset": "digits", "spec": SPEC}
        answer = serve(elsewhere).post("/certify", json=body, headers={"Idempotency-Key": "b"})
    assert (answer.status_code, answer.json()["id"]) == (202, lost)


def test_twenty_at_once_are_one_job(
    submit: Callable[..., httpx.Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.jobs.submit, "_PATIENCE_S", WAIT_S)
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(submit("x"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\tbed"])
def test_a_key_that_is_none_is_refused(submit: Callable[..., httpx.Response], key: str) -> None:
    answer = submit(key)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_idempotency_key")


def test_an_equal_result_is_used_again_unless_forced(
    submit: Callable[..., httpx.Response],
    api: httpx.Client,
    store: Store,
    ledger: Ledger,
    redis: Redis,
) -> None:
    first, second = submit().json(), submit().json()
    assert first["id"] != second["id"]  # nothing has ended yet
    succeed(store, ledger, first["id"])
    again = submit()
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    assert again.json()["status"] == "succeeded"
    assert again.headers["certserve-submission"] == "reused"
    assert submit("k").json()["id"] == first["id"]
    assert submit("k", spec={**SPEC, "seed": 1}).status_code == 409
    different = [
        submit(spec={**SPEC, "seed": 1}),
        submit(query="?force=true"),
        submit(force=True),
        submit(spec={**SPEC, "time_budget_s": 60}),
    ]
    assert all(answer.json()["status"] == "queued" for answer in different)
    clocked = {**SPEC, "sample_time_s": 60}
    ended = submit(spec=clocked).json()
    succeed(store, ledger, ended["id"])
    assert submit(spec=clocked).json()["id"] != ended["id"]  # it depends on the machine
    redis.flushall()
    eventually(ledger.memory.complete)
    assert submit().json()["id"] == first["id"]
    # The key of the re-used result is known again, though no job was ever submitted with it.
    assert submit("k", spec={**SPEC, "seed": 1}).status_code == 409
    assert submit("k").headers["certserve-submission"] == "replayed"
    assert api.delete(f"/jobs/{first['id']}").status_code == 204
    new = submit("k").json()
    assert new["id"] != first["id"], "the key goes with the job that it meant"
    redis.flushall()
    eventually(ledger.memory.complete)
    assert submit("k").json()["id"] == new["id"]


def test_a_result_that_is_gone_is_computed_again(
    submit: Callable[..., httpx.Response], api: httpx.Client, store: Store, ledger: Ledger
) -> None:
    first = submit("k").json()
    succeed(store, ledger, first["id"])
    assert api.delete(f"/jobs/{first['id']}").status_code == 204
    for again in (submit(), submit("k")):
        assert again.json()["status"] == "queued"
        assert again.json()["id"] != first["id"]


def test_results_are_not_used_again_where_the_settings_say_so(
    settings: Settings, serve: Callable[[Settings], httpx.Client], store: Store, ledger: Ledger
) -> None:
    api = serve(settings.model_copy(update={"reuse_results": False}))
    files = {
        "model": ("n.onnx", bytes([8, 8, 0x3A, 0])),
        "dataset_id": (None, "digits"),
        "spec": (None, '{"norm": "l2", "epsilons": [0.5]}'),
    }
    first = api.post("/certify", files=files).json()
    succeed(store, ledger, first["id"])
    assert api.post("/certify", files=files).json()["id"] != first["id"]


@pytest.mark.parametrize("layout", ["class folders", "batches", "Tiny ImageNet"])
def test_a_file_that_changed_deep_in_a_folder_is_other_data(
    settings: Settings,
    serve: Callable[[Settings], httpx.Client],
    store: Store,
    ledger: Ledger,
    layout: str,
    tmp_path: Path,
) -> None:
    """Written over in its place, so that no folder on the way to it has another time."""
    name, marks, file = {
        "class folders": ("cifar10", ["cifar10/test"], "cifar10/test/cat/1.png"),
        "batches": ("cifar10", [], "cifar-10-batches-py/test_batch"),
        "Tiny ImageNet": (
            "tiny-imagenet",
            ["tiny-imagenet-3/val"],
            "tiny-imagenet-3/val/val_annotations.txt",
        ),
    }[layout]
    for folder in marks:
        (tmp_path / "sources" / folder).mkdir(parents=True)
    changed = tmp_path / "sources" / file
    changed.parent.mkdir(parents=True, exist_ok=True)
    changed.write_bytes(b"first")
    sources = settings.model_copy(update={"data_sources": (tmp_path / "sources",)})
    api = serve(sources)
    files = {
        "model": ("n.onnx", bytes([8, 8, 0x3A, 0])),
        "dataset_id": (None, name),
        "spec": (None, '{"norm": "l2", "epsilons": [0.5]}'),
    }
    first = api.post("/certify", files=files).json()
    succeed(store, ledger, first["id"])
    assert api.post("/certify", files=files).json()["id"] == first["id"]
    changed.write_bytes(b"other")
    again = api.post("/certify", files=files).json()
    assert again["id"] != first["id"]
    assert again["status"] == "queued"


def test_of_a_folder_of_too_many_files_no_result_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in range(4):
        (tmp_path / f"{place}.png").touch()
    # A link to itself ends the walk like too many files do, or where the system says so.
    (tmp_path / "again").symlink_to(tmp_path)
    source = DatasetSource(kind="images_folder", name="a", paths={"folder": str(tmp_path)})
    assert result_key("", "", [source], "1") == result_key("", "", [source], "1") != ""
    monkeypatch.setattr(idempotency, "_MOST_FILES", 4)
    assert result_key("", "", [source], "1") == ""


def test_force_is_a_form_field_too(api: httpx.Client, store: Store, ledger: Ledger) -> None:
    files: dict[str, Any] = {
        "model": ("n.onnx", bytes([8, 8, 0x3A, 0])),
        "dataset_id": (None, "digits"),
        "spec": (None, '{"norm": "l2", "epsilons": [0.5]}'),
    }
    first = api.post("/certify", files=files).json()
    succeed(store, ledger, first["id"])
    assert api.post("/certify", files=files).json()["id"] == first["id"]
    forced = api.post("/certify", files={**files, "force": (None, "true")})
    assert forced.json()["id"] != first["id"]
    bad = api.post("/certify", files={**files, "force": (None, "maybe")})
    assert (bad.status_code, bad.json()["field"]) == (422, "force")
    waited = api.post("/certify", files=files, headers={"Prefer": "wait=5"})
    assert (waited.status_code, waited.json()["status"]) == (200, "succeeded")


def test_submissions_of_old_journals_are_read(
    make_submission: Callable[..., JobSubmission],
) -> None:
    old = make_submission().model_dump(mode="json")
    for new in ("attempt", "fingerprint", "idempotency_key", "result_key"):
        del old[new]
    assert JobSubmission.model_validate(old).attempt == 1
