"""API keys: nobody without one gets in, each sees only its own, and no secret is kept or logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from redis import Redis

import service.access.rate_limits
from service.access.keys import Caller, KeyRing
from service.contract.ledger.ledger import Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.problems import InvalidInput, NotFound
from service.contract.settings import Settings
from service.contract.storage.store import Store

MODEL = bytes([8, 8, 0x3A, 0])
SPEC = {"norm": "l2", "epsilons": [0.5]}


@pytest.fixture
def ring(settings: Settings) -> KeyRing:
    return KeyRing(settings.data_dir / "keys")


@pytest.fixture
def login(
    ring: KeyRing, settings: Settings, serve: Callable[[Settings], httpx.Client]
) -> Callable[..., httpx.Client]:
    """A client with a new key, of one API; keywords change its settings at the first call."""
    apis: list[httpx.Client] = []

    def make(name: str = "a", *, admin: bool = False, **changes: Any) -> httpx.Client:
        key, _ = ring.create(name, admin=admin)
        if not apis:
            apis.append(serve(settings.model_copy(update=changes)))
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=apis[0].base_url, headers=headers, timeout=30)

    return make


def submit(api: httpx.Client, **form: Any) -> httpx.Response:
    files = {
        "model": ("n.onnx", MODEL),
        "dataset_id": (None, "digits"),
        "spec": (None, '{"norm": "l2", "epsilons": [0.5]}'),
    }
    return api.post("/certify", files={**files, **form})


def test_a_key_is_found_until_it_is_revoked(ring: KeyRing) -> None:
    assert not ring.configured
    key, record = ring.create("build server", admin=True)
    assert ring.configured
    assert ring.find(key) == Caller(record["id"], admin=True)
    for wrong in ("", "crt_", key[:-1], key + "x", key.replace("crt_", "cr_"), "crt_" + "a" * 54):
        assert ring.find(wrong) is None
    other = KeyRing(ring._folder)  # another process
    assert other.find(key) is not None
    ring.revoke(record["id"])
    assert ring.find(key) is None
    assert other.find(key) is None
    assert ring.configured  # revoking opens nothing
    assert ring.records()[0]["revoked_at"] is not None
    with pytest.raises(NotFound):
        ring.revoke("aaaaaaaaaa")
    with pytest.raises(InvalidInput):
        ring.create("../x")


def test_only_a_hash_is_on_disk(ring: KeyRing) -> None:
    key, _ = ring.create("a")
    secret = key.split("_", 2)[2].encode()
    for path in ring._folder.iterdir():
        assert secret not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0
    assert "hmac" not in ring.records()[0]


def test_keys_may_come_from_the_settings() -> None:
    secrets = ("x" * 32, "build=" + "y" * 32, "admin=" + "z" * 32)
    settings = Settings(keys=",".join(secrets))  # type: ignore[arg-type]
    assert "xxxx" not in repr(settings)
    given = [key.get_secret_value() for key in settings.keys]
    ring = KeyRing(settings.data_dir / "nowhere", given)
    assert ring.configured
    assert ring.find("y" * 32) == Caller("build")
    assert ring.find("z" * 32) == Caller("admin", admin=True)
    anonymous = ring.find("x" * 32)
    assert anonymous is not None
    assert anonymous.name.startswith("given-")
    assert ring.find("w" * 32) is None
    with pytest.raises(InvalidInput, match="16"):
        KeyRing(settings.data_dir, ["short"])


def test_without_a_key_nothing_but_health_answers(login: Callable[..., httpx.Client]) -> None:
    api = login()
    stranger = httpx.Client(base_url=api.base_url, timeout=30)
    paths = stranger.get("/openapi.json").json()
    guarded = [
        (method, path.replace("{form}", "json"))
        for path, methods in paths["paths"].items()
        for method, operation in methods.items()
        if operation.get("security")
    ]
    assert len(guarded) >= 15
    for method, path in guarded:
        url = path.format(job_id="0" * 26, model_id="sha256:" + "0" * 64, dataset_id="x", index=0)
        for header in ({}, {"Authorization": "Bearer crt_aaaaaaaaaa_x"}, {"Authorization": "x"}):
            answer = stranger.request(method, url, headers=header)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), path
            assert answer.headers["www-authenticate"].startswith("Bearer")
    assert stranger.get("/healthz").status_code == 200
    assert stranger.get("/readyz").status_code == 503
    assert api.get("/jobs").status_code == 200


def test_each_key_sees_only_its_own(
    login: Callable[..., httpx.Client], store: Store, ledger: Ledger
) -> None:
    anna, ben, admin = login("anna"), login("ben"), login("admin", admin=True)
    job = submit(anna).json()
    model = job["model_id"]
    state = ledger.get(job["id"])
    assert state is not None
    store.job_dir(job["id"])
    store.write_json(store.report_path(job["id"]), {"job_id": job["id"]})
    conclude(store, ledger, state.submission, "succeeded", samples=3)
    unseen = [
        "",
        "/report",
        "/report.json",
        "/samples",
        "/counterexamples.npz",
        "/certificate",
        "/events",
    ]
    for part in unseen:
        answer = ben.get(f"/jobs/{job['id']}{part}")
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_job"), part
    for answer in (
        ben.post(f"/jobs/{job['id']}/cancel"),
        ben.post(f"/jobs/{job['id']}/retry"),
        ben.delete(f"/jobs/{job['id']}"),
        ben.get(f"/models/{model}"),
        ben.get(f"/models/{model}/onnx"),
    ):
        assert answer.status_code == 404
    body = {"model_id": model, "dataset": "digits", "spec": SPEC}
    refused = ben.post("/certify", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_model")
    for collection in ("jobs", "models", "datasets"):
        assert ben.get(f"/{collection}").json()["items"] == []
    # The same bytes are another thing in other hands: own upload, own names, own result.
    own = ben.post("/models", files={"model": ("n.onnx", MODEL), "name": (None, "mine")})
    assert (own.status_code, own.json()["names"]) == (201, ["mine"])
    assert anna.get(f"/models/{model}").json()["names"] == ["n.onnx"]
    mine = ben.post("/certify", json=body, headers={"Idempotency-Key": "1"}).json()
    hers = anna.post("/certify?force=1", json=body, headers={"Idempotency-Key": "1"}).json()
    assert mine["status"] == "queued"  # not anna's result
    assert len({mine["id"], hers["id"], job["id"]}) == 3
    assert [row["id"] for row in ben.get("/jobs").json()["items"]] == [mine["id"]]
    assert ben.get("/jobs?status=succeeded").json()["items"] == []
    assert len(anna.get("/jobs").json()["items"]) == 2
    assert len(anna.get("/jobs?status=queued&kind=certify").json()["items"]) == 1
    assert len(admin.get("/jobs").json()["items"]) == 3
    assert admin.get(f"/jobs/{mine['id']}").status_code == 200


def test_limits_of_a_key(login: Callable[..., httpx.Client]) -> None:
    limits = {"key_open_jobs": 2, "key_upload_bytes_per_day": 10_000}
    anna, ben, admin = login("anna", **limits), login("ben"), login("admin", admin=True)
    jobs = [submit(anna).json()["id"], submit(anna).json()["id"]]
    full = submit(anna)
    assert (full.status_code, full.json()["code"]) == (429, "too_many_jobs")
    assert full.headers["retry-after"] == "10"
    assert submit(ben).status_code == 202
    assert anna.post(f"/jobs/{jobs[0]}/cancel").status_code == 202
    third = submit(anna)
    assert third.status_code == 202
    # A job that is run again is one more open job.
    again = anna.post(f"/jobs/{jobs[0]}/retry")
    assert (again.status_code, again.json()["code"]) == (429, "too_many_jobs")
    assert anna.get(f"/jobs/{jobs[0]}").json()["status"] == "cancelled"
    assert anna.post(f"/jobs/{third.json()['id']}/cancel").status_code == 202
    assert anna.post(f"/jobs/{jobs[0]}/retry").status_code == 202
    assert submit(anna).json()["code"] == "too_many_jobs"
    assert all(submit(admin).status_code == 202 for _ in range(4))
    large = {"model": ("n.onnx", MODEL + bytes(9_000))}
    first = ben.post("/models", files=large)
    assert first.status_code in (201, 422)  # whatever it is, its bytes were received
    second = ben.post("/models", files=large)
    assert (second.status_code, second.json()["code"]) == (429, "upload_quota")
    assert 1 <= int(second.headers["retry-after"]) <= 86_400
    assert admin.post("/models", files=large).status_code in (201, 422)


def test_a_key_that_asks_too_fast_is_slowed_down(
    login: Callable[..., httpx.Client], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So rarely that no machine is too slow to ask too fast.
    anna = login("anna", key_requests_per_s=0.001)
    assert anna.get("/jobs").status_code == 200
    slowed = anna.get("/jobs")
    assert (slowed.status_code, slowed.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(slowed.headers["retry-after"]) <= 1000
    # Two thousand seconds later, by the clocks of Redis and of the API.
    (bucket,) = redis.keys("certserve:rate:*")
    redis.hincrbyfloat(bucket, "at", -2000.0)
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 2000.0)
    monkeypatch.setattr(service.access.rate_limits, "time", later)
    assert anna.get("/jobs").status_code == 200


def test_everything_is_answered_with_security_headers(
    login: Callable[..., httpx.Client], api: httpx.Client
) -> None:
    anna = login("anna")
    for client, path in ((anna, "/jobs"), (anna, "/nowhere"), (api, "/healthz"), (api, "/docs")):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"


def test_no_key_is_logged(
    login: Callable[..., httpx.Client], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    anna = login("anna")
    submit(anna)
    anna.get("/jobs/nope")
    anna.get("/nowhere")
    secret = anna.headers["authorization"].partition(" ")[2]
    served = [r for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
    assert not any(secret in record.getMessage() for record in served)


def test_other_sites_pages_may_not_send_forms_here(api: httpx.Client) -> None:
    answer = api.post("/models", headers={"Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
    own = {"Sec-Fetch-Site": "same-origin", "Origin": str(api.base_url)}
    answer = api.post("/models", headers=own)
    assert (answer.status_code, answer.json()["code"]) == (403, "stale_form")
    assert api.post("/models").status_code == 400, "a program, which no page makes ask"


def test_what_a_training_makes_is_its_owners_alone(
    login: Callable[..., httpx.Client], store: Store, ledger: Ledger, tmp_path: Path
) -> None:
    ann, bob = login("ann"), login("bob")
    np.savez(tmp_path / "mine.npz", x=np.zeros((40, 8, 8), np.uint8), y=np.zeros(40, np.int64))
    files = {"dataset": ("mine.npz", (tmp_path / "mine.npz").read_bytes())}
    data = ann.post("/datasets", files=files).json()["id"]
    wish = {"method": "standard", "dataset": data, "epsilon": 1, "recipe": {}}
    wish["architecture"] = {"name": "orthogonal-dense"}
    job = ann.post("/train", json=wish).json()["id"]
    for body in (wish, {**wish, "dataset": "digits", "test_dataset": data}):
        assert bob.post("/train", json=body).json()["code"] == "unknown_dataset"
    state = ledger.get(job)
    assert state is not None
    with store.writer(limit=9) as writer:
        writer.write(b"network")
        model = writer.publish().digest
    record = {"id": model, "format": "onnx", "name": "n", "size": 7, "files": {"weights": model}}
    record["created_at"] = "2026-01-01T00:00:00Z"
    store.put_record("models", model, record, owner=state.submission.principal, own=False)
    conclude(store, ledger, state.submission, "succeeded", model_id=model)
    pages = [f"/jobs/{job}/training", f"/jobs/{job}/training.svg", f"/models/{model}"]
    for path in (*pages, f"/models/{model}/onnx", f"/models/{model}/weights"):
        assert (ann.get(path).status_code, bob.get(path).status_code) == (200, 404), path
