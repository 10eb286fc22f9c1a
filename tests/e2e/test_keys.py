"""Keys made on the command line guard a real service, also on addresses that others can reach."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable

import httpx

from service.contract.processes import python_module
from tests.e2e.live_service import START_S, LiveService


def certserve(service: LiveService, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*python_module("service.cli.main", *arguments), "--data-dir", str(service.data_dir)]
    return subprocess.run(
        command, env=service.environment, capture_output=True, text=True, timeout=START_S
    )


def other_address() -> str:
    """An address of this host that is not loopback, or loopback where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def test_a_key_opens_the_service_and_its_revocation_closes_it(
    make_service: Callable[..., LiveService],
) -> None:
    service = make_service()
    refused = certserve(service, "serve", "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2
    assert "keys create" in refused.stderr
    created = certserve(service, "keys", "create", "ann")
    key = created.stdout.strip()
    assert created.returncode == 0
    assert key.startswith("crt_")
    key_id = key.split("_")[1]
    listed = certserve(service, "keys", "list").stdout
    assert key_id in listed
    assert key not in listed
    service.environment["CERTSERVE_HOST"] = "0.0.0.0"
    service.start()
    url = f"http://{other_address()}:{service.port}"
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{url}/jobs", timeout=START_S).status_code == 401
    assert httpx.get(f"{url}/jobs", headers=headers, timeout=START_S).status_code == 200
    assert certserve(service, "keys", "revoke", key_id).returncode == 0
    assert httpx.get(f"{url}/jobs", headers=headers, timeout=START_S).status_code == 401
    service.stop()
    assert key not in service.log.read_text()
