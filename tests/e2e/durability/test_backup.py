"""A data directory copied while the service runs is a backup: restored, it goes on from there."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from service.client import Client
from tests.e2e.live_service import (
    JOB_S,
    SAMPLES,
    SLOW_SPEC,
    LiveService,
    finished,
    submit,
    until_done,
)

#: What docs/operations.md says is copied, and in which order.
BACKUP = ("journal", "jobs", "models", "datasets", "blobs", "keys")


def copy(source: Path, target: Path) -> None:
    target.mkdir()
    for name in BACKUP:
        if (source / name).exists():
            subprocess.run(["cp", "-a", str(source / name), str(target)], check=False)


def test_a_backup_taken_under_load_is_restored_and_finishes_its_jobs(
    make_service: Callable[..., LiveService], uploads: tuple[Path, Path], tmp_path: Path
) -> None:
    service = make_service()
    service.start()
    with Client(service.url) as client:
        quick = client.certify(*uploads, {**SLOW_SPEC, "attack": None})["id"]
        client.wait(quick, timeout_s=JOB_S)
        before = client.report(quick)
    running = submit(service, uploads)
    waiting = submit(service, uploads)
    until_done(service, running, 4)
    copy(service.data_dir, tmp_path / "backup")
    service.kill_all()
    shutil.rmtree(service.data_dir)

    restored = make_service("restored")
    shutil.copytree(tmp_path / "backup", restored.data_dir)
    restored.start()
    with Client(restored.url) as client:
        assert client.report(quick) == before
    reports = [finished(restored, job_id) for job_id in (running, waiting)]
    assert reports[0]["result_digest"] == reports[1]["result_digest"]
    assert json.loads(before)["dataset"]["samples"] == SAMPLES
