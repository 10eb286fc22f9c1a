"""A sweep through the real service: one job, a certified model for each value, and a comparison."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from service.cli.train import _keep_sweep
from service.client import Client
from service.contract.processes import wait_until
from tests.e2e.live_service import LiveService

pytestmark = pytest.mark.slow

WAIT_S = 240.0
#: The last value is no rate that anything can be trained with.
RATES = [0.01, 0.05, 90.0]
WISH: dict[str, Any] = {
    "method": "ibp",
    "dataset": "digits",
    "epsilon": "1/50",
    "architecture": {
        "input": [1, 8, 8],
        "layers": [
            {"kind": "flatten"},
            {"kind": "linear", "out": 32},
            {"kind": "leaky-relu"},
            {"kind": "linear", "out": 10},
        ],
    },
    "recipe": {"optimizer": "sgd", "epochs": 60, "batch_size": 50},
    "sweep": {"learning_rate": RATES},
    "certify": {"epsilons": ["1/100", "1/50"], "samples": 60, "method": "ibp", "radius": False},
}


def test_every_value_has_its_model_and_report_whatever_dies(
    calm_service: LiveService, tmp_path: Path
) -> None:
    with (
        Client(calm_service.url) as client,
        httpx.Client(base_url=calm_service.url, timeout=WAIT_S) as http,
    ):
        job = client.train(WISH)["id"]
        runs = calm_service.data_dir / "jobs" / job / "runs"
        first = runs / "0" / "training" / "trained.json"
        assert wait_until((runs / "1").exists, WAIT_S)
        trained, told = first.stat().st_mtime_ns, http.get(f"/jobs/{job}").json()
        calm_service.kill(calm_service.horse())
        assert [model["model_id"] is None for model in told["models"]] == [False, True, True]
        assert told["links"]["pareto"] is None
        done = client.wait(job, timeout_s=WAIT_S)
        assert first.stat().st_mtime_ns == trained, "a value that was trained is not trained again"

        assert (done["model_id"], done["links"]["report"]) == (None, None)
        assert [model["value"] for model in done["models"]] == RATES
        *good, bad = done["models"]
        assert (bad["model_id"], bad["error"]["code"]) == (None, "training_diverged")
        assert len({model["model_id"] for model in good}) == 2
        assert done["progress"]["done"] == 120

        pareto = http.get(f"/jobs/{job}/pareto").json()
        assert (pareto["parameter"], pareto["epsilon_exact"]) == ("learning_rate", "1/50")
        for point, model, rate in zip(pareto["points"], good, RATES, strict=False):
            report = http.get(model["links"]["report"]).json()
            assert report["model"]["id"] == point["model_id"] == model["model_id"]
            assert point["clean_accuracy"] == report["clean_accuracy"] > 0.5
            assert point["certified_accuracy"] == report["results"][1]["certified_accuracy"]
            assert "signature" in report
            assert http.get(f"{model['links']['report']}.html").status_code == 200
            assert http.get(f"{model['links']['self']}/samples").json()["items"]
            run = http.get(f"{model['links']['self']}/training").json()
            assert run["plan"]["hyperparameters"]["learning_rate"] == rate
            assert len(run["history"]) == 60
        assert any(point["on_front"] for point in pareto["points"])
        near = http.get(f"/jobs/{job}/pareto.json", params={"epsilon": "0.01"}).json()
        assert near["points"][0]["certified_accuracy"] >= pareto["points"][0]["certified_accuracy"]
        assert http.get(f"/jobs/{job}/pareto", params={"epsilon": "1"}).status_code == 422
        assert "learning_rate = 0.05" in http.get(f"/jobs/{job}/pareto.svg").text
        refused = http.get(f"/jobs/{job}/report")
        assert (refused.status_code, refused.json()["code"]) == (404, "no_report")

        page = {"Accept": "text/html"}
        shown = http.get(f"/jobs/{job}/view", headers=page).text
        assert f"/jobs/{job}/pareto.svg" in shown
        assert f"{bad['error']['detail']}" in shown
        part = http.get(f"/jobs/{job}.0/view", headers=page).text
        assert f'href="/jobs/{job}/view"' in part
        assert "/cancel" not in part
        # Without the pages' cookies: no browser.
        http.cookies.clear()
        for verb, path in (("POST", "cancel"), ("POST", "retry"), ("DELETE", "")):
            answer = http.request(verb, f"/jobs/{job}.0/{path}".rstrip("/"))
            assert (answer.status_code, answer.json()["code"]) == (409, "part_of_sweep"), path
        assert http.get(f"/jobs/{job}.3").status_code == 404

        said = Console(file=io.StringIO(), width=200)
        _keep_sweep(client, done, tmp_path / "out", said)
        kept = json.loads((tmp_path / "out" / "pareto.json").read_text())
        assert kept == pareto
        printed = (tmp_path / "out" / "pareto.html").read_text()
        assert all(point["model_id"] in printed for point in pareto["points"])
        assert (tmp_path / "out" / "1" / "report.json").exists()
        assert (tmp_path / "out" / "1" / "model.onnx").stat().st_size > 0
        assert not (tmp_path / "out" / "2").exists()

        assert http.delete(f"/jobs/{job}").status_code == 204
        assert http.get(good[0]["links"]["report"]).status_code == 404
        assert not runs.parent.exists()
