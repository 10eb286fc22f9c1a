"""Training through the real service: a certified model comes out, whatever dies in between."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
import safetensors.numpy

from service.client import Client, JobFailed
from service.contract.processes import wait_until
from tests.e2e.live_service import LiveService

pytestmark = pytest.mark.slow

WAIT_S = 240.0
DIGITS: dict[str, Any] = {
    "method": "emma",
    "dataset": "digits",
    "epsilon": "1/2",
    "architecture": {"name": "orthogonal-dense", "input": [1, 8, 8], "widths": [64, 64]},
    "activation": "maxmin",
    "epochs": 12,
    "learning_rate": 5e-3,
    "certify": {"epsilons": ["1/4", "1/2"], "samples": 200, "attack": {"audit": 1.0}},
}


def test_a_certified_model_comes_out(calm_service: LiveService) -> None:
    with Client(calm_service.url) as client:
        job = client.train(DIGITS)
        done = client.wait(job["id"], timeout_s=WAIT_S)
        report = json.loads(client.report(job["id"]))
    assert done["kind"] == "train"
    assert done["model_id"] == report["model"]["id"]
    assert report["soundness"] == "sound"
    assert report["dataset"] | {"total": 500, "split": "test"} == report["dataset"]
    at_quarter, at_half = report["results"]
    assert report["clean_accuracy"] > 0.85
    assert at_quarter["certified_accuracy"] > at_half["certified_accuracy"] > 0.4
    assert at_half["certified_accuracy"] <= at_half["attack_accuracy"]
    with httpx.Client(base_url=calm_service.url, timeout=WAIT_S) as http:
        model = http.get(f"/models/{done['model_id']}").json()
        onnx = http.get(model["links"]["onnx"]).content
        weights = http.get(model["links"]["weights"]).content
        curve = http.get(f"/jobs/{job['id']}/training").json()
    assert [row["epoch"] for row in curve["history"]] == list(range(1, 13))
    assert curve["model_id"] == done["model_id"]
    tensors = safetensors.numpy.load(weights)
    assert all(bool(np.isfinite(tensor).all()) for tensor in tensors.values())
    # ONNX Runtime says what a plain reading of the state dict says.
    x = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x})
    z = x.reshape(5, -1)
    layers = sorted({name.split(".")[1] for name in tensors})
    for place, name in enumerate(sorted(layers, key=lambda layer: int(layer.rpartition("_")[2]))):
        z = z @ tensors[f"layers.{name}.weight"].T + tensors[f"layers.{name}.bias"]
        if place + 1 < len(layers):
            first, second = np.split(z, 2, axis=1)
            z = np.concatenate([np.maximum(first, second), np.minimum(first, second)], axis=1)
    assert np.allclose(np.asarray(logits), z, atol=1e-4)


def trained_weights(service: LiveService, job_id: str) -> bytes:
    with httpx.Client(base_url=service.url, timeout=WAIT_S) as http:
        model_id = http.get(f"/jobs/{job_id}").json()["model_id"]
        return http.get(f"/models/{model_id}/weights").content


def test_a_killed_training_ends_in_the_same_bits(calm_service: LiveService) -> None:
    wish = {**DIGITS, "epochs": 60, "certify": None, "force": True}
    with Client(calm_service.url) as client:
        calm = client.train(wish)["id"]
        client.wait(calm, timeout_s=WAIT_S)
        job = client.train(wish)["id"]
        folder = calm_service.data_dir / "jobs" / job / "training"
        # More often than an item that does not get on may lose its worker.
        for kills in range(4):
            last = (folder / "checkpoint.safetensors", kills)
            assert wait_until(lambda last=last: _newer(*last), WAIT_S)
            calm_service.kill(calm_service.horse())
        client.wait(job, timeout_s=WAIT_S)
    assert trained_weights(calm_service, job) == trained_weights(calm_service, calm)
    assert not (folder / "checkpoint.safetensors").exists()


def _newer(path: Path, kills: int) -> bool:
    """Whether the checkpoint is some steps further than at the last kill."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, ValueError):
        return False
    return int(json.loads(header["__metadata__"]["facts"])["step"]) >= 60 * (kills + 1)


def test_a_cancelled_training_stops_and_can_go_on(calm_service: LiveService) -> None:
    with (
        Client(calm_service.url) as client,
        httpx.Client(base_url=calm_service.url, timeout=WAIT_S) as http,
    ):
        job = client.train({**DIGITS, "epochs": 300, "certify": None})["id"]
        path = calm_service.data_dir / "jobs" / job / "training" / "checkpoint.safetensors"
        assert wait_until(path.exists, WAIT_S)
        horse = calm_service.horse()
        http.post(f"/jobs/{job}/cancel")
        assert wait_until(lambda: not _runs(horse), WAIT_S)
        assert not path.with_name("trained.json").exists(), "it was done to its end instead"
        assert http.get(f"/jobs/{job}").json()["status"] == "cancelled"
        http.post(f"/jobs/{job}/retry")
        assert wait_until(lambda: http.get(f"/jobs/{job}").json()["progress"]["done"] > 0, WAIT_S)
        http.post(f"/jobs/{job}/cancel")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        (
            {"recipe": {"optimizer": "sgd", "learning_rate": 100.0, "activation": "relu"},
             "method": "standard", "architecture": {"input": [1, 8, 8], "layers": [
                 {"kind": "flatten"}, {"kind": "linear", "out": 32}, {"kind": "leaky-relu"},
                 {"kind": "linear", "out": 10}]}},
            "training_diverged",
        ),
        ({"architecture": "mnist-small"}, "shape_mismatch"),
        (
            {"architecture": {"name": "orthogonal-dense", "input": [64], "classes": 5}},
            "label_out_of_range",
        ),
        (
            {"activation": None, "architecture": {
                "input": [64], "layers": [{"kind": "linear", "out": 1}]}},
            "invalid_architecture",
        ),
    ],
)  # fmt: skip
def test_a_bad_run_is_a_failed_job_that_says_why(
    calm_service: LiveService, changes: dict[str, Any], code: str
) -> None:
    wish = {k: v for k, v in DIGITS.items() if k != "learning_rate"}
    if "recipe" in changes:
        del wish["activation"]
    with Client(calm_service.url) as client:
        job = client.train({**wish, **changes})
        with pytest.raises(JobFailed) as caught:
            client.wait(job["id"], timeout_s=WAIT_S)
    assert caught.value.code == code
    assert caught.value.job["model_id"] is None


SHIFTNET: dict[str, Any] = {
    "method": "one-lipschitz",
    "dataset": "digits",
    "epsilon": "1/2",
    "architecture": {"name": "shiftnet", "input": [1, 8, 8], "width": 16, "depths": [2, 2]},
    "recipe": {
        "epochs": 12,
        "batch_size": 64,
        "optimizer": "orthogonal-muon",
        "learning_rate": 0.03,
        "epsilon_schedule": {"points": [[0.0, 1.5]]},
        "options": {"temperature": 0.25},
    },
    "certify": {
        "epsilons": ["1/4", "1/2"],
        "samples": 200,
        "attack": {"steps": 10, "audit": 0.25},
    },
}
#: Skew convolutions, folds, pooling by projection and a softplus head.
LIPCONVNET: dict[str, Any] = {
    "method": "soc-crc",
    "dataset": "digits",
    "epsilon": "1/2",
    "architecture": {
        "name": "lipconvnet",
        "input": [1, 8, 8],
        "blocks": 2,
        "depth": 2,
        "width": 4,
        "pooling": "projection",
        "head": "crc",
        "hidden": 32,
        "mean": [0.3],
    },
    "recipe": {
        "epochs": 8,
        "batch_size": 64,
        "optimizer": "sgd-normalized",
        "learning_rate": 0.1,
        "clip_norm": 1.0,
        "activation": "householder",
        "options": {"curvature": 0.01, "gamma": 0.1},
    },
    "certify": {
        "epsilons": ["1/8", "1/4"],
        "samples": 100,
        "attack": {"steps": 5, "audit": 0.25},
    },
}


@pytest.mark.parametrize("wish", [SHIFTNET, LIPCONVNET], ids=lambda wish: wish["method"])
def test_a_one_lipschitz_model_has_the_same_radii_as_an_upload(
    calm_service: LiveService, tmp_path: Path, wish: dict[str, Any]
) -> None:
    """What a training deploys is a plain ONNX file: the upload path sees nothing else."""
    file = tmp_path / "model.onnx"
    with Client(calm_service.url) as client:
        job = client.train(wish)
        done = client.wait(job["id"], timeout_s=WAIT_S)
        file.write_bytes(client.model_file(done["model_id"], "onnx"))
        method = "crc" if wish["method"] == "soc-crc" else "lipschitz"
        spec = {"norm": "l2", **wish["certify"], "method": method, "attack": None}
        again = client.certify(file, "digits", spec)
        client.wait(again["id"], timeout_s=WAIT_S)
        first, second = (json.loads(client.report(job_id)) for job_id in (job["id"], again["id"]))
    assert first["method"] == method
    assert first["soundness"] == second["soundness"] == "sound"
    assert first["clean_accuracy"] > 0.85
    assert first["results"][1]["certified_accuracy"] > 0.4
    for one, other in zip(first["results"], second["results"], strict=True):
        assert one["certified_accuracy"] <= one["attack_accuracy"] <= first["clean_accuracy"]
        assert abs(one["certified"] - other["certified"]) <= 1
    radii = [report["radius"]["mean"] for report in (first, second)]
    assert abs(radii[0] - radii[1]) <= 1e-5
