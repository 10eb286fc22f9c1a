"""``certserve verify-report`` on what a real service has signed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from service.access.signing_key import SigningKeys
from service.cli.main import main
from service.client import Client
from service.reports.signing import sign
from tests.e2e.live_service import LiveService

pytestmark = pytest.mark.slow

Uploads = tuple[Path, Path]


def test_a_report_is_verified_and_its_rows_certified_again(
    calm_service: LiveService,
    uploads: Uploads,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    service, out = calm_service, tmp_path / "report.json"

    def run(*arguments: object) -> tuple[int, str]:
        status = main(["verify-report", str(out), *map(str, arguments)])
        return status, " ".join(capsys.readouterr().out.split())

    spec = {"norm": "l2", "epsilons": ["36/255"], "samples": 6, "seed": 77}
    with Client(service.url) as client:
        job = client.certify(*uploads, spec)["id"]
        client.wait(job)
        data = client.report(job)
        rows = client.rows_file(job)
        keys = client.signing_keys()
    out.write_bytes(data)
    about = ("--model", uploads[0], "--dataset", uploads[1])
    trusted = ("--key", keys["public_key"])
    assert run("--url", service.url) == (0, "a valid signature by a trusted key")
    assert run(*trusted, *about)[0] == 0
    assert run("--data-dir", service.data_dir)[0] == 0
    stranger = ("--key", SigningKeys(tmp_path / "other").public())
    assert run(*stranger)[0] == 3
    assert run("--data-dir", tmp_path / "nothing")[0] == 3
    status, said = run(*trusted, "--model", uploads[1])
    assert (status, "another model" in said) == (1, True)
    # Against an independent service of one's own.
    own = ("--data-dir", tmp_path / "own")
    lines = tmp_path / "rows.jsonl"
    lines.write_bytes(rows)
    status, said = run(*trusted, *about, *own, "--rows", lines, "--recheck", 4)
    assert (status, "4 of 4 rows confirmed" in said) == (0, True), said
    lines.write_bytes(rows + b"\n")
    assert run(*trusted, *about, *own, "--rows", lines, "--recheck", 4)[0] == 1
    assert run(*trusted, "--recheck", 4)[0] == 2
    report = json.loads(data)
    report["results"][0]["certified"] += 1
    out.write_text(json.dumps(report))
    assert run(*trusted) == (1, "the signature does not belong to this report")
    out.write_text("{")
    assert run(*trusted)[0] == 2


def test_what_a_service_signs_and_cannot_hold_is_found(
    calm_service: LiveService,
    uploads: Uploads,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A good signature by a trusted key, under larger radii, or other totals than its rows have."""
    spec = {"norm": "l2", "epsilons": ["36/255"], "samples": 6, "seed": 78}
    with Client(calm_service.url) as client:
        job = client.certify(*uploads, spec)["id"]
        client.wait(job)
        honest, rows = json.loads(client.report(job)), client.rows(job)
    keys = SigningKeys(tmp_path / "keys")
    out, lines = tmp_path / "report.json", tmp_path / "rows.jsonl"

    def checked(report: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[int, str]:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        lines.write_bytes(data)
        unsigned = {name: value for name, value in report.items() if name != "signature"}
        unsigned["samples_digest"] = "sha256:" + hashlib.sha256(data).hexdigest()
        out.write_text(json.dumps(sign(unsigned, keys.private())))
        about = ("--model", uploads[0], "--dataset", uploads[1], "--rows", lines)
        own = ("--key", keys.public(), "--data-dir", tmp_path / "own", "--recheck", 6)
        status = main(["verify-report", str(out), *map(str, (*about, *own))])
        return status, " ".join(capsys.readouterr().out.split())

    assert checked(honest, rows)[0] == 0
    larger = [{**row, "radius": 1000.0 * row["radius"]} for row in rows]
    proved = sum(row["radius"] > 0 for row in rows)
    mean = {**honest["radius"], "mean": 1000.0 * honest["radius"]["mean"]}
    status, said = checked({**honest, "radius": mean}, larger)
    assert (status, said.count("is not certified here")) == (1, proved)
    assert proved > 0
    (result,) = honest["results"]
    more = {**result, "certified": result["certified"] + 1}
    status, said = checked({**honest, "results": [more]}, rows)
    assert (status, "its rows have" in said) == (1, True)
    assert "6 of 6 rows confirmed" in said
