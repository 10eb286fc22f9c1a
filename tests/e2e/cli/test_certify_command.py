"""The command line against a real service, one that runs or one that it starts itself."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.client import Client
from service.supervisor.instance_lock import running_service
from tests.e2e.live_service import JOB_S, LiveService
from tests.extent import ALL

pytestmark = pytest.mark.slow

Uploads = tuple[Path, Path]

#: The command, also where a shell has started the tests in the background: it ignores SIGINT there.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from service.cli.main import main
sys.exit(main())
"""


def certserve(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CERTSERVE_REDIS")}
    return subprocess.run(
        [sys.executable, "-m", "service.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=550,
        env={**inherited, **environment},
    )


def test_certify_starts_what_it_needs_and_stops_it(tmp_path: Path, uploads: Uploads) -> None:
    model, data = uploads
    out = tmp_path / "out" / "report.csv"
    ended = certserve(
        *("certify", model, "--dataset", data, "--norm", "l2", "--epsilon", "36/255"),
        *("--epsilon", "0.5", "--samples", "20", "--out", out, "--data-dir", tmp_path / "data"),
    )
    assert ended.returncode == 0, ended.stderr
    assert "36/255" in ended.stdout
    rows = list(csv.DictReader(out.open()))
    assert [row["index"] for row in rows] == [str(index) for index in range(20)]
    assert running_service(tmp_path / "data") is None
    assert not list((tmp_path / "data" / "run").glob("*.pid"))


def test_certify_on_a_running_service(
    calm_service: LiveService, uploads: Uploads, tmp_path: Path
) -> None:
    service = calm_service
    model, data = uploads
    common = ("certify", model, "--dataset", data, "--norm", "linf", "--epsilon", "1/255")
    out = tmp_path / "report.json"
    by_url = certserve(*common, "--url", service.url, "--out", out)
    assert by_url.returncode == 0, by_url.stderr
    assert json.loads(out.read_text())["threat"]["norm"] == "linf"
    by_folder = certserve(*common, "--data-dir", service.data_dir)
    assert by_folder.returncode == 0, by_folder.stderr
    assert service.runs


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_job_that_nobody_waits_for_is_cancelled(
    calm_service: LiveService, uploads: Uploads, number: signal.Signals
) -> None:
    endless = {"steps": 50_000, "restarts": 1, "audit": 1.0, "seed": 0}
    arguments = ("certify", uploads[0], "--dataset", uploads[1], "--norm", "l2")
    arguments += ("--epsilon", "0.2", "--url", calm_service.url)
    further = json.dumps({"attack": endless, "method": "lipschitz"})
    with Client(calm_service.url) as client:
        before = {job["id"] for job in client.jobs()["items"]}
        waiting = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTIBLE, *map(str, arguments), "--spec", further],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            deadline = time.monotonic() + JOB_S
            begun: list[str] = []
            while not begun:
                assert waiting.poll() is None
                assert time.monotonic() < deadline
                running = client.jobs(status="running")["items"]
                begun = [job["id"] for job in running if job["id"] not in before]
                time.sleep(0.1)
            waiting.send_signal(number)
            said, _ = waiting.communicate(timeout=JOB_S)
        finally:
            waiting.kill()
        assert waiting.returncode == 130
        assert f"job {begun[0]} is cancelled" in said
        assert client.job(begun[0])["status"] == "cancelled"


def test_failures_are_told_in_one_line(
    calm_service: LiveService, uploads: Uploads, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x07no model")
    for model, text in ((broken, "invalid_onnx"), (tmp_path / "none.onnx", "there is no file")):
        ended = certserve(
            *("certify", model, "--dataset", uploads[1], "--norm", "l2", "--epsilon", "0.1"),
            *("--url", calm_service.url),
        )
        assert ended.returncode == 2
        assert text in ended.stderr
        assert "Traceback" not in ended.stderr


def test_nobody_listens(uploads: Uploads) -> None:
    ended = certserve(
        *("certify", uploads[0], "--dataset", uploads[1], "--norm", "l2", "--epsilon", "0.1"),
        *("--url", "http://127.0.0.1:9"),
    )
    assert ended.returncode == 2
    assert "does not answer" in ended.stderr


def test_demo(root: Path, tmp_path: Path) -> None:
    if not (root / "examples" / "mnist_certified.onnx").exists():
        pytest.skip("the example network has not been made")
    folders = ("--out", tmp_path / "demo", "--data-dir", tmp_path / "data")
    ended = certserve("demo", *folders, "--samples", "all" if ALL else 30)
    assert ended.returncode == 0, ended.stderr
    names = sorted(path.name for path in (tmp_path / "demo").iterdir())
    assert names == ["report.csv", "report.html", "report.json", "report.svg"]
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["clean_accuracy"] >= 0.95
    for row, least in zip(report["results"], (0.8, 0.45), strict=True):
        assert row["certified_accuracy"] >= least
