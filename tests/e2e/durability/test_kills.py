"""Whatever is killed in the middle of a job, the job ends in the report of a calm run, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.contract.processes import wait_until
from tests.e2e.durability.outcome import check_once
from tests.e2e.live_service import LiveService, submit, until_done

pytestmark = pytest.mark.slow

Uploads = tuple[Path, Path]


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


def test_redis_loses_its_data_under_a_running_job(
    calm_service: LiveService, uploads: Uploads, calm_report: dict[str, Any]
) -> None:
    job_id = submit(calm_service, uploads)
    until_done(calm_service, job_id, 4)
    # In one step: Redis writes on until it is killed.
    (calm_service.data_dir / "redis").rename(calm_service.data_dir / "lost")
    calm_service.kill(calm_service.child("redis").pid)
    check_once(calm_service, job_id, calm_report)
