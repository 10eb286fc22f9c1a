"""A cascade through the real service: a stage that is killed goes on, and what is told of the whole
follows from what its stages answer."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from service.cli.exit_status import FAILED, NO, YES
from service.cli.main import main
from service.cli.train import _keep_sweep
from service.client import Client
from service.contract.processes import wait_until
from tests.e2e.live_service import LiveService

pytestmark = pytest.mark.slow

WAIT_S = 240.0
WISH: dict[str, Any] = {
    "method": "cap",
    "dataset": "digits",
    "epsilon": "1/50",
    "architecture": {
        "input": [1, 8, 8],
        "layers": [
            {"kind": "flatten"},
            {"kind": "linear", "out": 12},
            {"kind": "relu"},
            {"kind": "linear", "out": 10},
        ],
    },
    "recipe": {
        "epochs": 20,
        "batch_size": 50,
        "learning_rate": 0.01,
        "options": {"cascade_stages": 2, "projections": 0},
    },
    "certify": {
        "epsilons": ["1/100", "1/50"],
        "samples": 60,
        "method": "cap",
        "radius": False,
        "criterion": {"epsilon": "1/50", "certified_accuracy": 0.5},
        "attack": {"steps": 5, "audit": 0.0},
    },
}


def test_a_cascade_is_trained_certified_and_told_whatever_dies(
    calm_service: LiveService, tmp_path: Path
) -> None:
    with (
        Client(calm_service.url) as client,
        httpx.Client(base_url=calm_service.url, timeout=WAIT_S) as http,
    ):
        job = client.train(WISH)["id"]
        runs = calm_service.data_dir / "jobs" / job / "runs"
        # Not for its checkpoint: a quick stage ends before it has one.
        assert wait_until((runs / "1").exists, WAIT_S)
        moments = [
            path.stat().st_mtime_ns
            for path in (runs / "0/training/trained.json", runs / "0/training/certified.json")
        ]
        calm_service.kill(calm_service.horse())
        done = client.wait(job, timeout_s=WAIT_S)
        assert moments == [
            path.stat().st_mtime_ns
            for path in (runs / "0/training/trained.json", runs / "0/training/certified.json")
        ]

        assert (done["model_id"], done["links"]["report"], done["links"]["pareto"]) == (None,) * 3
        assert [(m["value"], m["error"]) for m in done["models"]] == [(1, None), (2, None)]
        found = http.get(done["links"]["cascade"]).json()
        assert "signature" in found
        kept = json.loads((runs / "0/training/certified.json").read_text())
        first, second = found["stages"]
        assert second["trained_on"] == first["trained_on"] - len(kept["rows"]) > 0
        assert [stage["model_id"] for stage in found["stages"]] == [
            model["model_id"] for model in done["models"]
        ]

        reports = [http.get(model["links"]["report"]).json() for model in done["models"]]
        rows = [http.get(f"/jobs/{job}.{k}/samples", params={"limit": 60}).json() for k in (0, 1)]
        for place, row in enumerate(found["results"]):
            # Of right predictions the stages' own reports know the same.
            sure = [[item["certified"][place] for item in part["items"]] for part in rows]
            right = [
                [item["prediction"] == item["label"] for item in part["items"]] for part in rows
            ]
            every = sum(all(both) for both in zip(*sure, strict=True))
            certified = sum(a and b for a, b in zip(right[0], sure[1], strict=True))
            assert (row["every_stage"], row["certified"]) == (every, certified)
            by = row["answered_by"]
            assert row["protocol"] == sum(
                stage > 0 and sure[stage - 1][sample] for sample, stage in enumerate(by)
            )
            assert row["clean_accuracy"] == pytest.approx(
                sum(right[stage - 1][sample] for sample, stage in enumerate(by)) / 60
            )
            assert row["every_stage"] <= row["certified"] <= row["protocol"]
            for number, report in enumerate(reports, 1):
                assert by.count(number) == row["answered"][number - 1]
                assert report["soundness"] == "sound"
        assert found["results"][1]["protocol"] > 0

        shown = http.get(f"/jobs/{job}/view", headers={"Accept": "text/html"}).text
        assert found["statement"].partition("\n")[0].replace("'", "&#39;") in shown
        part = http.get(f"/jobs/{job}.1/view", headers={"Accept": "text/html"}).text
        assert f'<a href="/jobs/{job}/view">a cascade</a>' in part
        said = Console(file=io.StringIO(), width=200)
        # By the protocol's figure it would be reached.
        assert (
            found["results"][1]["protocol_accuracy"]
            > 0.5
            > found["results"][1]["certified_accuracy"]
        )
        assert [report["criterion"]["met"] for report in (*reports, found)] == [True, False, False]
        assert _keep_sweep(client, done, tmp_path / "out", said) == NO
        assert json.loads((tmp_path / "out" / "cascade.json").read_text()) == found
        check = ["verify-report", str(tmp_path / "out" / "cascade.json"), "--url", calm_service.url]
        assert main(check) == YES
        assert main([*check, "--recheck", "1"]) == FAILED
        for stage in ("0", "1"):
            assert (tmp_path / "out" / stage / "model.onnx").stat().st_size > 0
            assert (tmp_path / "out" / stage / "report.json").exists()
        assert "ESTIMATE" in said.file.getvalue()  # type: ignore[attr-defined]
