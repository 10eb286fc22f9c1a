"""A webhook of a real job: its API process may die as often as it likes."""

from __future__ import annotations

import json
from pathlib import Path

from service.client import Client
from service.contract.processes import ProcessId, wait_until
from tests.e2e.hostile.case import SPEC
from tests.e2e.live_service import JOB_S, START_S, LiveService
from tests.service.webhooks.receiver import Receiver, check_signature


def test_a_killed_api_tells_of_the_job_later(
    calm_service: LiveService, uploads: tuple[Path, Path]
) -> None:
    service = calm_service
    with Receiver() as receiver, Client(service.url) as client:
        receiver.delay_s, receiver.answers = 2.0, [500, 500]
        url = f"http://127.0.0.1:{receiver.port}/hook?token=sesame"
        job = client.wait(client.certify(*uploads, SPEC, webhook=url)["id"], timeout_s=JOB_S)
        assert wait_until(lambda: bool(receiver.received), START_S)
        api = service.child("api")
        service.kill(api.pid)  # while it waits for the answer
        path = service.data_dir / "run" / "child-api.pid"
        assert wait_until(lambda: ProcessId.read(path) not in (None, api), START_S)
        assert wait_until(lambda: len(receiver.received) >= 3, START_S)
        for message in receiver.received:
            check_signature(message)
            body = json.loads(message.body)
            assert body["type"] == "job.succeeded"
            assert body["data"]["id"] == job["id"]
        assert len({message.headers["webhook-id"] for message in receiver.received}) == 1
        state = service.data_dir / "jobs" / job["id"] / "webhook.json"
        assert wait_until(lambda: json.loads(state.read_text())["ended"] == "delivered", START_S)
    assert "sesame" not in service.log.read_text()
    assert "127.0.0.1, try" in service.log.read_text()
