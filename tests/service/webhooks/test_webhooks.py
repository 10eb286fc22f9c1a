"""Webhooks against a real receiver: signed, at least once, across restarts, never inwards."""

from __future__ import annotations

import ipaddress
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.contract.settings import Settings
from service.webhooks.sending import signature
from tests.service.conftest import RedisServer, Serving, eventually
from tests.service.uploads_by_hand import onnx_model
from tests.service.webhooks.receiver import SECRET, Receiver, check_signature
from tests.workers.jobs.conftest import tiny_npz

SPEC = {"norm": "l2", "epsilons": ["36/255"]}
ARCHITECTURE = {"input": [1, 6, 6], "layers": [{"kind": "flatten"}, {"kind": "linear", "out": 3}]}

Serve = Callable[[Settings], httpx.Client]


@pytest.fixture
def settings(tmp_path: Path, redis_server: RedisServer) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        redis_url=redis_server.url,
        reconcile_interval_s=0.2,
        webhook_secret=SECRET,  # type: ignore[arg-type]
        webhook_allow="127.0.0.0/8",  # type: ignore[arg-type]
        webhook_pause_s=0.2,
        # An answer that came too late would be a try more than a test counts.
        webhook_timeout_s=60,
    )


def submit(api: httpx.Client, url: str, **more: Any) -> httpx.Response:
    model = api.post("/models", files={"model": ("a.onnx", onnx_model())}).json()["id"]
    body = {"model_id": model, "dataset": "digits", "spec": SPEC, "webhook": url, **more}
    return api.post("/certify", json=body)


def ended(api: httpx.Client, url: str) -> str:
    """A job that has just ended; no worker is there, so it is cancelled."""
    answer = submit(api, url)
    assert answer.status_code == 202, answer.text
    job_id = str(answer.json()["id"])
    assert api.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    return job_id


def state_of(settings: Settings, job_id: str) -> dict[str, Any]:
    path = settings.data_dir / "jobs" / job_id / "webhook.json"
    return json.loads(path.read_text()) if path.exists() else {}  # type: ignore[no-any-return]


def test_the_signature_is_that_of_the_standard() -> None:
    """The example of the Standard Webhooks specification."""
    assert (
        signature(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1614265330,
            b'{"test": 2432232314}',
        )
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_the_end_of_a_job_is_told_once_and_signed(
    settings: Settings, serve: Serve, serve_and_stop: Callable[[Settings], Serving]
) -> None:
    api, stop = serve_and_stop(settings)
    with Receiver() as receiver:
        url = f"http://127.0.0.1:{receiver.port}/hook?token=abc"
        job_id = ended(api, url)
        eventually(lambda: receiver.received)
        (message,) = receiver.received
        check_signature(message)
        assert message.path == "/hook?token=abc"
        assert message.headers["host"] == f"127.0.0.1:{receiver.port}"
        body = json.loads(message.body)
        assert body["type"] == "job.cancelled"
        shown = api.get(f"/jobs/{job_id}").json()
        assert body["data"] == {name: shown[name] for name in body["data"]}
        eventually(lambda: state_of(settings, job_id).get("ended") == "delivered")
        stop()
        # The next process on the same directory looks at this job before it looks at a new one.
        later = ended(serve(settings), url)
        eventually(lambda: state_of(settings, later).get("ended") == "delivered")
        ids = [message.headers["webhook-id"] for message in receiver.received]
        assert ids == [f"{job_id}-1", f"{later}-1"]


def test_a_form_names_a_webhook_too(settings: Settings, serve: Serve) -> None:
    api = serve(settings)
    with Receiver() as receiver:
        url = f"http://127.0.0.1:{receiver.port}/"
        fields = {"dataset": "digits", "spec": json.dumps(SPEC), "webhook": url}
        job = api.post("/certify", data=fields, files={"model": ("a.onnx", onnx_model())}).json()
        api.delete(f"/jobs/{job['id']}")
        eventually(lambda: receiver.received)


def test_a_training_names_a_webhook_too(settings: Settings, serve: Serve, tmp_path: Path) -> None:
    api = serve(settings)
    images = tiny_npz(tmp_path / "a.npz").read_bytes()
    data = api.post("/datasets", files={"dataset": ("a.npz", images)}).json()["id"]
    body = {"method": "emma", "dataset": data, "epsilon": 0.1, "architecture": ARCHITECTURE}
    with Receiver() as receiver:
        url = f"http://127.0.0.1:{receiver.port}/"
        answer = api.post("/train", json={**body, "webhook": url})
        assert answer.status_code == 202, answer.text
        api.post(f"/jobs/{answer.json()['id']}/cancel")
        eventually(lambda: receiver.received)
    answer = api.post("/train", json={**body, "webhook": "http://10.0.0.1/"})
    assert answer.json()["code"] == "webhook_target_refused"


def test_what_is_not_taken_is_sent_again_with_the_same_id(settings: Settings, serve: Serve) -> None:
    api = serve(settings)
    with Receiver() as receiver:
        receiver.answers = [500, 302, 429]
        job_id = ended(api, f"http://127.0.0.1:{receiver.port}/")
        eventually(lambda: len(receiver.received) == 4)
        assert len({message.headers["webhook-id"] for message in receiver.received}) == 1
        assert len({message.body for message in receiver.received}) == 1
        assert {message.path for message in receiver.received} == {"/"}  # no redirect is followed
        for message in receiver.received:
            check_signature(message)
        eventually(lambda: state_of(settings, job_id).get("ended") == "delivered")
        assert state_of(settings, job_id)["tries"] == 4


def test_a_receiver_may_be_given_up(settings: Settings, serve: Serve) -> None:
    api = serve(settings)
    with Receiver() as receiver:
        receiver.answers = [410]
        gone = ended(api, f"http://127.0.0.1:{receiver.port}/gone")
        eventually(lambda: state_of(settings, gone).get("ended") == "given_up")
        assert state_of(settings, gone)["tries"] == 1
        assert [message.path for message in receiver.received] == ["/gone"]


def test_a_receiver_that_does_not_answer_is_given_up(settings: Settings, serve: Serve) -> None:
    api = serve(settings.model_copy(update={"webhook_tries": 2, "webhook_timeout_s": 0.5}))
    with Receiver() as receiver:
        receiver.delay_s = 600.0
        slow = ended(api, f"http://127.0.0.1:{receiver.port}/slow")
        eventually(lambda: state_of(settings, slow).get("ended") == "given_up")
        assert state_of(settings, slow)["tries"] == 2
        assert "no answer" in state_of(settings, slow)["last"]
        assert len(receiver.received) <= 2  # half a second may be over before a request is out


def test_deliveries_outlive_the_process(
    settings: Settings, serve_and_stop: Callable[[Settings], Serving]
) -> None:
    receiver = Receiver()
    api, stop = serve_and_stop(settings)
    job_id = ended(api, f"http://127.0.0.1:{receiver.port}/")
    eventually(lambda: state_of(settings, job_id).get("tries", 0) >= 1)
    stop()
    eventually(lambda: all(thread.name != "webhooks" for thread in threading.enumerate()))
    with receiver:
        assert receiver.received == []  # nobody is there to send
        serve_and_stop(settings)
        eventually(lambda: receiver.received)
        assert receiver.received[0].headers["webhook-id"] == f"{job_id}-1"


def test_a_retried_job_is_told_of_again(settings: Settings, serve: Serve) -> None:
    api = serve(settings)
    with Receiver() as receiver:
        job_id = ended(api, f"http://127.0.0.1:{receiver.port}/")
        eventually(lambda: len(receiver.received) == 1)
        assert api.post(f"/jobs/{job_id}/retry").status_code == 202
        api.post(f"/jobs/{job_id}/cancel")
        eventually(lambda: len(receiver.received) == 2)
        ids = [message.headers["webhook-id"] for message in receiver.received]
        assert ids == [f"{job_id}-1", f"{job_id}-2"]


def test_a_webhook_is_no_part_of_what_is_asked_for(settings: Settings, serve: Serve) -> None:
    api = serve(settings)
    api.headers["Idempotency-Key"] = "a"
    first = submit(api, "http://127.0.0.1:9/")
    second = submit(api, "http://127.0.0.1:9/other")
    assert second.json()["id"] == first.json()["id"]
    assert second.headers["Certserve-Submission"] == "replayed"


INSIDE = (
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f.1",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "[::1]",
    "[::]",
    "[fe80::1]",
    "[fc00::1]",
    "[ff02::1]",
    "[::ffff:127.0.0.1]",
    "[2002:7f00:1::]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::a00:1]",
    "[fec0::1]",
)


def test_addresses_inside_are_refused(settings: Settings, serve: Serve) -> None:
    api = serve(settings.model_copy(update={"webhook_allow": ()}))
    for host in INSIDE:
        answer = submit(api, f"http://{host}/")
        assert (answer.status_code, answer.json().get("code")) == (422, "webhook_target_refused")
    assert submit(api, "http://[2606:4700::1]/").status_code == 202


def test_a_name_that_leads_inside_is_not_told(settings: Settings, serve: Serve) -> None:
    api = serve(settings.model_copy(update={"webhook_allow": ()}))
    with Receiver() as receiver:
        job_id = ended(api, f"http://localhost:{receiver.port}/")
        eventually(lambda: state_of(settings, job_id))
        assert state_of(settings, job_id)["last"].startswith("TargetRefused")
        assert receiver.received == []


NO_ADDRESSES = (
    "",
    "x",
    "ftp://example.org/",
    "http://",
    "http:///a",
    "https://a:b@example.org/",
    "http://example.org:99999/",
    "http://example.org/#f",
    "http://exa mple.org/",
    "http://example.org\\@127.0.0.1/",
    "file:///etc/passwd",
    "http://ex\u00e4mple.org/",
    "http://[::1/",
    "https://example.org/" + "a" * 2000,
)


def test_what_is_no_address_is_refused(settings: Settings, serve: Serve) -> None:
    api = serve(settings)
    for url in NO_ADDRESSES:
        answer = submit(api, url)
        assert answer.status_code == 422, url
        assert answer.json()["code"] in ("invalid_webhook", "invalid_request")
        assert answer.json()["field"] == "webhook"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
@pytest.mark.parametrize("name", ["localhost", "elsewhere.example"])
def test_the_certificate_is_the_name_s_although_the_address_is_connected_to(
    settings: Settings, serve: Serve, tmp_path: Path, name: str
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    allowed = {"webhook_ca_file": certificate, "webhook_allow": _loopback()}
    api = serve(settings.model_copy(update=allowed))
    with Receiver(context=context) as receiver:
        job_id = ended(api, f"https://localhost:{receiver.port}/")
        eventually(lambda: state_of(settings, job_id))
        delivered = state_of(settings, job_id)["ended"] == "delivered"
        assert delivered == (name == "localhost"), state_of(settings, job_id)
        assert len(receiver.received) == delivered


def _loopback() -> tuple[Any, ...]:
    return tuple(ipaddress.ip_network(text) for text in ("127.0.0.0/8", "::1/128"))


def test_without_a_secret_nobody_is_told(settings: Settings, serve: Serve) -> None:
    api = serve(settings.model_copy(update={"webhook_secret": None}))
    answer = submit(api, "https://example.org/")
    assert (answer.status_code, answer.json()["code"]) == (422, "webhooks_disabled")
    with pytest.raises(ValueError, match="24"):
        Settings(webhook_secret="short")  # type: ignore[arg-type]
