"""What is seen from outside: metrics that add up, logs a machine can read, secrets struck out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import service.contract.ledger.counters
from service.access.keys import KeyRing
from service.contract.ids import new_job_id
from service.contract.ledger.ledger import Ledger
from service.contract.logs import configure_logging
from service.contract.schemas.submissions import JobSubmission
from service.contract.settings import Settings
from tests.service.conftest import RedisServer, eventually

Make = Callable[..., JobSubmission]


def scrape(api: httpx.Client) -> dict[tuple[str, ...], float]:
    answer = api.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_metrics_tell_of_queue_jobs_shards_workers_and_uploads(
    api: httpx.Client, ledger: Ledger, make_submission: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half a minute into some minute: what was done "over the last minute" was done now.
    monkeypatch.setattr(service.contract.ledger.counters, "now", lambda: 1_800_000_030.0)
    jobs = [make_submission() for _ in range(3)]
    for job in jobs:
        ledger.create(job)
    ledger.finish(jobs[0].id, "cancelled")
    ledger.lease(jobs[1].id, worker="w")
    for seconds, samples in ((0.3, 10), (7.0, 20), (9_000.0, 30)):
        ledger.totals.add_shard(seconds, samples)
    facts = {"host": "h", "device": "cuda", "memory_bytes": "1000", "gpu_memory_bytes": "2000"}
    ledger.worker_registry.heartbeat("w", facts)
    api.post("/models", files={"model": ("n.onnx", bytes([8, 8, 0x3A, 0]))})
    api.get("/nowhere")
    eventually(
        lambda: scrape(api).get(("certserve_queue_depth",), 0) >= 1
    )  # the reconciler notifies
    found = scrape(api)
    assert found["certserve_redis_up",] == 1
    assert found["certserve_jobs", "queued"] == 1
    assert found["certserve_jobs", "running"] == 1
    assert found["certserve_jobs", "cancelled"] == 1
    assert found["certserve_shard_seconds_bucket", "0.1"] == 0
    assert found["certserve_shard_seconds_bucket", "0.5"] == 1
    assert found["certserve_shard_seconds_bucket", "10.0"] == 2
    assert found["certserve_shard_seconds_bucket", "+Inf"] == 3
    assert found["certserve_shard_seconds_sum",] == pytest.approx(9_007.3)
    assert found["certserve_samples_total",] == 60
    assert found["certserve_samples_per_second",] == pytest.approx(1.0)
    assert found["certserve_workers",] == 1
    assert found["certserve_worker_memory_bytes", "cuda", "h", "w"] == 1000
    assert found["certserve_worker_gpu_memory_bytes", "cuda", "h", "w"] == 2000
    assert found["certserve_upload_bytes_total",] == 4
    assert found["certserve_http_requests_total", "GET", "404"] == 1


def test_metrics_answer_without_redis(api: httpx.Client, redis_server: RedisServer) -> None:
    redis_server.kill()
    found = scrape(api)
    assert found["certserve_redis_up",] == 0
    assert ("certserve_jobs", "queued") not in found
    redis_server.start()


def test_metrics_are_for_admins_where_there_are_keys(
    settings: Settings, serve: Callable[[Settings], httpx.Client]
) -> None:
    ring = KeyRing(settings.data_dir / "keys")
    key, admin = ring.create("a")[0], ring.create("b", admin=True)[0]
    api = serve(settings)
    answers = [
        api.get("/metrics", headers=headers)
        for headers in (
            {},
            {"Authorization": f"Bearer {key}"},
            {"Authorization": f"Bearer {admin}"},
        )
    ]
    assert [answer.status_code for answer in answers] == [401, 403, 200]
    assert answers[1].json()["code"] == "admin_only"


def test_json_lines_name_the_job_and_hide_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    log, job_id = logging.getLogger("somewhere"), new_job_id()
    log.info("job %s: attempt %d", job_id, 2)
    log.warning("wake-up job %s is lost", f"{job_id}-0a1b2c3d")
    log.info("nothing in particular")
    key = "crt_abcdefghij_" + "x" * 40
    log.error("a header: Authorization: Bearer %s", key)
    log.error("connecting to redis://worker:hunter2@host:6379/0 with %s", key)
    try:
        raise ValueError(f"no {key}")
    except ValueError:
        log.exception("it failed")
    text = capsys.readouterr().err
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line.get("job_id") for line in lines[:3]] == [job_id, job_id, None]
    assert lines[0]["message"] == f"job {job_id}: attempt 2"
    assert lines[0]["level"] == "info"
    assert "ValueError" in lines[-1]["exception"]
    assert "x" * 40 not in text
    assert "hunter2" not in text


def test_text_lines_hide_secrets_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text")
    logging.getLogger("a").info("Bearer %s", "very-secret")
    assert "very-secret" not in capsys.readouterr().err
