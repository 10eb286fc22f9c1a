"""Files as exporters write them, over HTTP to a report: two files, one score, scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service.cli.certify import data_beside
from service.client import Client, JobFailed
from tests.e2e.live_service import JOB_S, LiveService
from tests.models.onnx.forms.files import floats, linear_classifier, node, written
from tests.models.onnx.graphs import graph_of, normal

pytestmark = pytest.mark.slow

SPEC = {"norm": "linf", "epsilons": ["1/1000"], "method": "crown", "clip": False, "radius": False,
        "attack": {"steps": 5, "restarts": 1, "audit": 1.0, "seed": 0}}  # fmt: skip


def certified(
    service: LiveService, model: Path, data: Path, **more: Any
) -> tuple[dict[str, Any], Client]:
    client = Client(service.url)
    spec = {**SPEC, **more}
    job = client.certify(model, data, spec, model_data=data_beside(model))
    client.wait(job["id"], timeout_s=JOB_S)
    return json.loads(client.report(job["id"])), client


def arrays(path: Path, y: Any, size: int = 4) -> Path:
    np.savez(path, x=normal(7, len(y), size), y=np.asarray(y))
    return path


def test_a_model_of_two_files_is_certified_and_given_back_as_one(
    calm_service: LiveService, tmp_path: Path
) -> None:
    model = graph_of([node("Gemm", ["x", "w", "b"], ["y"])], (4,),
                     {"w": normal(0, 4, 3), "b": normal(1, 3)})  # fmt: skip
    path = tmp_path / "net.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="net.onnx.data",
                    size_threshold=0)  # fmt: skip
    (tmp_path / "other.data").write_bytes(b"not of this model")
    assert data_beside(path) == [tmp_path / "net.onnx.data"]
    logits = normal(7, 6, 4) @ normal(0, 4, 3) + normal(1, 3)
    report, client = certified(calm_service, path, arrays(tmp_path / "d.npz", logits.argmax(1)))
    with client:
        assert report["clean_accuracy"] == 1.0
        assert report["results"][0]["certified"] > 0
        whole = onnx.load_model_from_string(client.model_file(report["model"]["id"], "onnx"))
    assert not any(tensor.external_data for tensor in whole.graph.initializer)
    assert {tensor.name for tensor in whole.graph.initializer} == {"w", "b"}


def test_one_score_and_scikit_learn_say_what_they_are_about(
    calm_service: LiveService, tmp_path: Path
) -> None:
    weights = {"w": normal(0, 4, 1)}
    nodes = [node("MatMul", ["x", "w"], ["l"]), node("Sigmoid", ["l"], ["p"])]
    path = tmp_path / "score.onnx"
    path.write_bytes(written(nodes, [floats("x", "N", 4)], [floats("p", "N", 1)], weights))
    y = (normal(7, 6, 4) @ weights["w"] > 0)[:, 0].astype(np.int64)
    report, client = certified(calm_service, path, arrays(tmp_path / "a.npz", y))
    with client:
        assert report["clean_accuracy"] == 1.0
        assert report["model"]["binary"] is True
        assert "class 1 where it is above 0.5" in report["statement"]
    path.write_bytes(linear_classifier())
    report, client = certified(calm_service, path, arrays(tmp_path / "b.npz", [0, 1, 2]))
    with client:
        assert report["model"]["output"] == "maps"
        assert "says nothing about its other outputs ('label')" in report["statement"]
    with pytest.raises(JobFailed) as caught:
        certified(calm_service, path, tmp_path / "b.npz", output="nowhere")
    assert caught.value.code == "unknown_output"
