"""Schemathesis against a running service, with and without a key: every check, no fault.

``make test`` takes 20 seconds with a key: what only needs one is then met, what needs none is met
as well. Both, and for long: ``make schemathesis`` and ``make nightly``
(CERTSERVE_TEST_SCHEMATHESIS_S seconds for each of the two).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.client import Client
from tests.e2e.hostile.case import SPEC
from tests.e2e.live_service import JOB_S, LiveService
from tests.e2e.memory import peak_bytes
from tests.extent import ALL

SECONDS = int(os.environ.get("CERTSERVE_TEST_SCHEMATHESIS_S", "20"))
KEY = "schemathesis-key-0123456789"
KEYS = [None, KEY] if ALL or "CERTSERVE_TEST_SCHEMATHESIS_S" in os.environ else [KEY]


@pytest.mark.timeout(3 * SECONDS + 900)
@pytest.mark.parametrize("key", KEYS, ids=lambda key: "with a key" if key else "without a key")
def test_the_service_is_what_it_says_it_is(
    make_service: Callable[..., LiveService],
    uploads: tuple[Path, Path],
    tmp_path: Path,
    key: str | None,
) -> None:
    keys = {} if key is None else {"CERTSERVE_KEYS": f"admin={key}"}
    service = make_service(**keys)
    service.start()
    with Client(service.url, key=key) as client:
        # Something to look at: a model, a data set, a job, a report.
        client.wait(client.certify(*uploads, SPEC)["id"], timeout_s=JOB_S)
    command = [sys.executable, "-m", "schemathesis.cli"]
    command += ["--config-file", str(Path(__file__).with_name("schemathesis.toml")), "run"]
    command += [f"{service.url}/openapi.json", "--checks", "all", "--max-time", str(SECONDS)]
    command += ["--continue-on-failure", "--no-color", "--request-timeout", "60"]
    if key is not None:
        command += ["--header", f"Authorization: Bearer {key}"]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=3 * SECONDS + 400
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr + service.log.read_text()[-3000:]
    assert "Traceback" not in service.log.read_text()
    assert peak_bytes(service.child("api").pid) < 300 * 10**6
