"""A 202 is a promise: it is kept although the API dies the next moment and Redis forgets all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from service.contract.settings import Settings
from service.contract.storage.journal import JournalReader
from service.contract.storage.store import Store
from tests.service.conftest import WAIT_S, RedisServer, eventually

ROOT = Path(__file__).parents[3]
_SERVE = (
    "import uvicorn; uvicorn.run('service.api.app:create_app', factory=True, fd={fd}, "
    "log_level='warning')"
)


def _start(settings: Settings) -> tuple[subprocess.Popen[bytes], str]:
    environment = {
        **os.environ,
        "CERTSERVE_DATA_DIR": str(settings.data_dir),
        "CERTSERVE_REDIS_URL": str(settings.redis_url),
    }
    # The child inherits the socket: a port that was only asked for may be somebody else's by then.
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        descriptor = listener.fileno()
        command = [sys.executable, "-c", _SERVE.format(fd=descriptor)]
        process = subprocess.Popen(command, env=environment, cwd=ROOT, pass_fds=[descriptor])
    assert httpx.get(f"{url}/healthz", timeout=WAIT_S).status_code == 200
    return process, url


def test_every_acknowledged_submission_survives_the_death_of_api_and_redis(
    settings: Settings, redis_server: RedisServer, serve: Callable[[Settings], httpx.Client]
) -> None:
    process, url = _start(settings)
    upload = {"model": ("n.onnx", bytes([8, 8, 0x3A, 0]))}
    model = httpx.post(f"{url}/models", files=upload, timeout=WAIT_S).json()
    spec = {"norm": "l2", "epsilons": [0.5]}
    body: dict[str, Any] = {"model_id": model["id"], "dataset": "digits", "spec": spec}
    acknowledged: list[str] = []

    def submit() -> None:
        with httpx.Client(base_url=url, timeout=WAIT_S) as client:
            try:
                while True:
                    acknowledged.append(client.post("/certify", json=body).json()["id"])
            except httpx.TransportError:
                return

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(acknowledged) >= 100)
    process.kill()
    redis_server.kill()  # it persists nothing
    process.wait()
    for thread in threads:
        thread.join()
    redis_server.start()
    api = serve(settings)
    store = Store(settings.data_dir)
    journalled = {job.id for job in JournalReader(store.folder("journal")).read()}
    assert set(acknowledged) <= journalled
    missing = set(acknowledged)

    def all_found() -> bool:
        missing.difference_update(
            [job for job in missing if api.get(f"/jobs/{job}").status_code == 200]
        )
        return not missing

    eventually(all_found)
