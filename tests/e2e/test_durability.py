"""Whatever is killed in the middle of a job, the job ends in the report of a calm run, once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.contract.processes import wait_until
from tests.e2e.conftest import SAMPLES, LiveService, finished, submit, until_done

pytestmark = pytest.mark.slow

Uploads = tuple[Path, Path]
Made = Callable[..., LiveService]


def result(report: dict[str, Any]) -> dict[str, Any]:
    """What two runs of one job must agree in."""
    runs = ("job_id", "timing", "device", "created_at", "signature", "result_digest")
    return {name: value for name, value in report.items() if name not in runs}


def check_once(service: LiveService, job_id: str, calm: dict[str, Any]) -> None:
    """One outcome, one report, every sample in it once, and the calm run's result."""
    report = finished(service, job_id)
    assert result(report) == result(calm)
    assert report["result_digest"] == calm["result_digest"]
    folder = service.data_dir / "jobs" / job_id
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(SAMPLES))
    written = (folder / "outcome.json").stat().st_mtime_ns
    assert json.loads((folder / "outcome.json").read_text())["status"] == "succeeded"
    assert json.loads((folder / "report.json").read_text()) == report
    assert not wait_until(lambda: (folder / "outcome.json").stat().st_mtime_ns != written, 1.5)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("victim", ["horse", "worker-0", "redis", "api"])
def test_kill_one(
    calm_service: LiveService, uploads: Uploads, calm_report: dict[str, Any], victim: str
) -> None:
    service = calm_service
    job_id = submit(service, uploads)
    until_done(service, job_id, 4)
    before = service.horse()
    service.kill(before if victim == "horse" else service.child(victim).pid)
    if victim == "worker-0":
        assert wait_until(lambda: not Path(f"/proc/{before}/maps").exists(), 60), "horse lives on"
    check_once(service, job_id, calm_report)


def test_kill_everything_and_start_again(
    make_service: Made, uploads: Uploads, calm_report: dict[str, Any]
) -> None:
    service = make_service()
    service.start()
    job_id = submit(service, uploads)
    until_done(service, job_id, 4)
    service.kill_all()
    service.start()
    check_once(service, job_id, calm_report)


def test_accepted_and_killed_at_once(
    make_service: Made, uploads: Uploads, calm_report: dict[str, Any]
) -> None:
    service = make_service()
    service.start()
    job_id = submit(service, uploads)
    service.kill_all()
    service.start()
    check_once(service, job_id, calm_report)


def test_redis_loses_its_data_under_a_running_job(
    calm_service: LiveService, uploads: Uploads, calm_report: dict[str, Any]
) -> None:
    job_id = submit(calm_service, uploads)
    until_done(calm_service, job_id, 4)
    # In one step: Redis writes on until it is killed.
    (calm_service.data_dir / "redis").rename(calm_service.data_dir / "lost")
    calm_service.kill(calm_service.child("redis").pid)
    check_once(calm_service, job_id, calm_report)


@pytest.mark.parametrize("damage", ["lost", "torn in the middle"])
def test_redis_data(
    make_service: Made, uploads: Uploads, calm_report: dict[str, Any], damage: str
) -> None:
    service = make_service()
    service.start()
    job_id = submit(service, uploads)
    until_done(service, job_id, 4)
    service.kill_all()
    aof = service.data_dir / "redis" / "appendonly.aof"
    if damage == "lost":
        shutil.rmtree(aof.parent)
    else:
        raw = bytearray(aof.read_bytes())
        # From the head of a command on: inside a long value Redis would not notice.
        middle = raw.index(b"\r\n*", len(raw) // 2) + 2
        raw[middle : middle + 200] = b"\xff" * 200
        aof.write_bytes(raw)
    service.start()
    if damage != "lost":
        assert list(aof.parent.glob("*.damaged-*")), "the damaged file was not kept"
    check_once(service, job_id, calm_report)


def test_stop_hands_back_and_a_new_start_goes_on(
    make_service: Made, uploads: Uploads, calm_report: dict[str, Any]
) -> None:
    service = make_service()
    service.start()
    job_id = submit(service, uploads)
    until_done(service, job_id, 4)
    children = [service.child(name) for name in ("redis", "api", "worker-0")]
    service.stop()
    assert service.process is not None
    assert service.process.returncode == 0, "it had to be killed"
    assert not any(child.alive for child in children)
    service.start()
    check_once(service, job_id, calm_report)


def test_a_second_start_takes_over(
    make_service: Made, uploads: Uploads, calm_report: dict[str, Any]
) -> None:
    first = make_service()
    first.start()
    job_id = submit(first, uploads)
    until_done(first, job_id, 4)
    second = make_service()
    second.port = first.port
    second.start()
    assert first.process is not None
    assert first.process.wait(60) == 0
    check_once(second, job_id, calm_report)
