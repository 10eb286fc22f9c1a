"""Cancel, retry, events and metrics of a real service: supervisor, Redis, API and worker."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx

from service.client import Client
from service.contract.processes import ProcessId, wait_until
from tests.e2e.live_service import JOB_S, SAMPLES, LiveService, finished, submit, until_done

#: Of four samples each.
SHARDS = SAMPLES // 4


def test_a_cancelled_job_frees_its_worker_and_a_retry_ends_as_a_calm_run(
    calm_service: LiveService, uploads: tuple[Path, Path], calm_report: dict[str, Any]
) -> None:
    job_id = submit(calm_service, uploads)
    until_done(calm_service, job_id, 4)
    horse = calm_service.horse()
    began = time.monotonic()
    with Client(calm_service.url) as client:
        assert client.cancel(job_id)["status"] == "cancelled"
    assert wait_until(lambda: ProcessId.of(horse) is None, JOB_S)
    print(f"worker free {time.monotonic() - began:.1f} s after the cancel")
    shards = calm_service.data_dir / "jobs" / job_id / "shards"
    written = list(shards.iterdir()) if shards.exists() else []
    assert len(written) < SHARDS, "it was done to its end instead"
    http = httpx.Client(base_url=calm_service.url, timeout=JOB_S)
    answer = http.post(f"/jobs/{job_id}/retry")
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    names: list[str] = []
    with http.stream("GET", f"/jobs/{job_id}/events") as events:
        for line in events.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
    assert names[0] == names[-1] == "status"
    assert "progress" in names
    report = finished(calm_service, job_id)
    assert report["result_digest"] == calm_report["result_digest"]
    text = http.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["certserve_shard_seconds_count"]) >= SHARDS
    assert float(values["certserve_samples_total"]) >= 32
    assert any(name.startswith("certserve_worker_memory_bytes{") for name in values)
    status = Path(f"/proc/{calm_service.child('api').pid}/status").read_text()
    resident_kib = int(status.partition("VmRSS:")[2].split()[0])
    assert resident_kib < 150 * 1024
    assert http.delete(f"/jobs/{job_id}").status_code == 204
    assert http.get(f"/jobs/{job_id}").status_code == 404
    http.close()
