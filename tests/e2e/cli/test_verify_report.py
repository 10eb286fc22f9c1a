"""``certserve verify-report`` on what a real service has signed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.access.signing_key import SigningKeys
from service.cli.main import main
from service.client import Client
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


def test_a_claim_that_does_not_hold_is_named() -> None:
    from service.cli.checks.verify_report import _disagreement

    row = {"index": 3, "label": 1, "prediction": 1, "certified": [True, False]}
    assert _disagreement(row, row) is None
    assert _disagreement(row, {**row, "certified": [True, True]}) is None
    assert "row 3" in str(_disagreement(row, {**row, "certified": [False, True]}))
    assert "prediction" in str(_disagreement(row, {**row, "prediction": 2}))
