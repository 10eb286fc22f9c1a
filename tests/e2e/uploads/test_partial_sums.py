"""A wide network of norm 1, as a library exports it, gets its radius by one ``POST /certify``."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.onnx.runtime import OnnxRuntimeModel
from service.client import Client
from tests.e2e.live_service import JOB_S, LiveService
from tests.workers.verification.uploads.wide_networks import dense_network

pytestmark = pytest.mark.slow


def test_a_wide_network_gets_the_radius_that_it_deserves_as_partial_sums(
    calm_service: LiveService, tmp_path: Path
) -> None:
    wide = dense_network(256)
    model, data, out = (tmp_path / name for name in ("wide.onnx", "d.npz", "report.json"))
    model.write_bytes(wide.onnx)
    np.savez(data, x=wide.x.numpy(), y=np.zeros(1, dtype=np.int64))
    command = [sys.executable, "-m", "service.cli.main", "certify", str(model)]
    command += ["--dataset", str(data), "--norm", "l2", "--epsilon", "0.01", "--out", str(out)]
    command += ["--summation", "partial-sums", "--spec", json.dumps({"attack": None})]
    command += ["--url", calm_service.url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=JOB_S)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(out.read_text())
    uploaded, made = report["model"]["rewritten_from"]["id"], report["model"]["id"]
    assert uploaded == "sha256:" + hashlib.sha256(wide.onnx).hexdigest() != made
    assert f"certified is the rewritten file {made}" in ended.stdout
    # As it is uploaded it keeps 0.9 (tests/workers/verification/uploads).
    assert 0.95 <= report["radius"]["mean"] / wide.deserved <= 1.0
    with Client(calm_service.url) as client:
        job = client.job(report["job_id"])
        assert job["model_id"] == uploaded
        assert job["links"]["rewritten"] == f"/models/{made}/onnx"
        content = client.model_file(made, "onnx")
    assert made == "sha256:" + hashlib.sha256(content).hexdigest()
    assert OnnxRuntimeModel(content, (256,))(wide.x.numpy()).argmax() == 0
