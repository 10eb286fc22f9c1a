"""``certserve doctor`` names what is missing on a machine, and what to do about it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from service.cli.checks import doctor
from service.cli.main import main


def look(monkeypatch: pytest.MonkeyPatch, **environment: object) -> dict[str, doctor.Finding]:
    for name, value in environment.items():
        monkeypatch.setenv(f"CERTSERVE_{name.upper()}", str(value))
    # A process of its own that imports torch: once is enough.
    monkeypatch.setattr(doctor, "_devices", lambda settings: doctor.Finding("devices", "ok", ""))
    return {finding.what: finding for finding in doctor.findings()}


def test_a_good_machine_has_nothing_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CERTSERVE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("CERTSERVE_REDIS_URL", raising=False)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["state"] for row in found} <= {"ok", "warning"}
    assert {"torch", "Redis", "data directory", "devices", "service"} <= {r["what"] for r in found}
    assert not (tmp_path / "data").exists(), "it looks and makes nothing"


def test_what_is_missing_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    found = look(
        monkeypatch,
        data_dir=tmp_path / "file" / "data",
        data_sources=tmp_path / "none",
        redis_url=f"redis://:secret@127.0.0.1:{port}",
        host="0.0.0.0",
        worker_threads=4096,
        worker_thread=1,
    )
    (tmp_path / "file").write_text("in the way")
    found |= look(monkeypatch)
    for what, state, told in (
        ("Redis", "missing", "CERTSERVE_REDIS_URL"),
        ("data directory", "missing", "CERTSERVE_DATA_DIR"),
        ("data sources", "warning", "CERTSERVE_DATA_SOURCES"),
        ("access", "missing", "certserve keys create"),
        ("processors", "warning", "CERTSERVE_WORKER_THREADS"),
        ("settings", "warning", "variables"),
    ):
        assert (found[what].state, told in found[what].mend) == (state, True), found[what]
    assert "secret" not in str(found)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name == "onnx" else "1")
    found = look(monkeypatch)
    assert (found["onnx"].state, found["torch"].state) == ("missing", "ok")
    assert "pip install onnx" in found["onnx"].mend
    monkeypatch.setattr(doctor, "findings", lambda: iter(found.values()))
    assert main(["doctor"]) == 1


def test_version_names_what_computes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    lines = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert {"certserve", "python", *doctor.COMPUTING} == set(lines)
