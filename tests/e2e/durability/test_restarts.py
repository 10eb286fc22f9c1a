"""A service that ends in the middle of a job goes on where it was when it is started again.

All tests end the same service: every one starts on the data directory that the others left.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.durability.outcome import check_once
from tests.e2e.live_service import LiveService, submit, until_done
from tests.extent import part

pytestmark = pytest.mark.slow

Uploads = tuple[Path, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """The service of this module, whether it runs or not."""
    service = LiveService(tmp_path_factory.mktemp("restarts") / "data")
    yield service
    service.close()


@pytest.fixture
def service(made: LiveService) -> LiveService:
    """The service, which runs: as the test before left it, as a rule."""
    if not made.runs:
        made.start()
    return made


def test_kill_everything_and_start_again(
    service: LiveService, uploads: Uploads, calm_report: dict[str, Any]
) -> None:
    job_id = submit(service, uploads)
    until_done(service, job_id, 4)
    service.kill_all()
    service.start()
    check_once(service, job_id, calm_report)


def test_accepted_and_killed_at_once(
    service: LiveService, uploads: Uploads, calm_report: dict[str, Any]
) -> None:
    job_id = submit(service, uploads)
    service.kill_all()
    service.start()
    check_once(service, job_id, calm_report)


# That all is lost is seen by day under a running service (test_kills.py).
@pytest.mark.parametrize("damage", part(["lost", "torn in the middle"], 1))
def test_redis_data(
    service: LiveService, uploads: Uploads, calm_report: dict[str, Any], damage: str
) -> None:
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
    service: LiveService, uploads: Uploads, calm_report: dict[str, Any]
) -> None:
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
    service: LiveService, uploads: Uploads, calm_report: dict[str, Any]
) -> None:
    job_id = submit(service, uploads)
    until_done(service, job_id, 4)
    first = service.process
    assert first is not None
    service.start()
    assert first.wait(60) == 0
    check_once(service, job_id, calm_report)
