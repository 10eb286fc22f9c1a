"""Models that take bytes, and data in units of their own, from the upload to the report."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from models.errors import ModelError
from service.contract.ids import new_job_id
from service.contract.schemas.submissions import DatasetSource, JobSubmission, ModelSource, Spec
from service.contract.settings import Settings
from service.contract.storage.store import Store
from service.contract.times import now, rfc3339
from tests.models.onnx.graphs import graph_of, normal
from workers.jobs.datasets.arrays import DataError
from workers.jobs.inspection.child import inspect
from workers.jobs.items.merge import merge
from workers.jobs.items.shard import certify_shard

node = helper.make_node


#: All inputs of two bytes.
GRID = np.stack(np.meshgrid(*(np.arange(256, dtype=np.uint8),) * 2), -1).reshape(-1, 2)


def of_bytes(first: str = "Cast", *, divided: bool = True) -> bytes:
    """uint8 [N, 2] - float32 - / 255 - dense(8) - relu - dense(3), the classes in balance."""
    nodes = [
        node(first, ["x"], ["f"], **({"to": TensorProto.FLOAT} if first == "Cast" else {})),
        *([node("Div", ["f", "c"], ["p"])] if divided else []),
        node("MatMul", ["p" if divided else "f", "v"], ["h"]),
        node("Add", ["h", "b"], ["g"]),
        node("Relu", ["g"], ["r"]),
        node("MatMul", ["r", "w"], ["s"]),
        node("Sub", ["s", "m"], ["y"]),
    ]
    v, b, w = 3 * normal(0, 2, 8), normal(1, 8), normal(2, 8, 3)
    # No class wins everywhere.
    middle = np.median(np.maximum(GRID / 255 @ v + b, 0) @ w, 0).astype(np.float32)
    constants: dict[str, Any] = {"c": np.float32(255.0), "b": b, "w": w, "m": middle}
    constants["v"] = v if divided else (v / 255).astype(np.float32)
    model = graph_of(nodes, (2,), constants)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return model.SerializeToString()


def report_of(folder: Path, model: bytes, data: dict[str, Any], **asked: Any) -> dict[str, Any]:
    """The report of a job that is done in this process, with its rows and counterexamples; or the
    problem that its inspection ended with."""
    store, settings = Store(folder / "data"), Settings(data_dir=folder / "data")
    spec = Spec.model_validate({"norm": "l2", "epsilons": [0.01], **asked})
    blobs = {}
    for name, content in (("m.onnx", model), ("d.npz", npz_of(data))):
        with store.writer(limit=2**30) as writer:
            writer.write(content)
            blobs[name] = writer.publish().digest
    submission = JobSubmission(
        id=new_job_id(),
        kind="certify",
        spec=spec.normal(),
        model=ModelSource(digest=blobs["m.onnx"], format="onnx", name="m.onnx", size=len(model)),
        dataset=DatasetSource(kind="npz", name="d.npz", blobs={"file": blobs["d.npz"]}),
        created_at=rfc3339(now()),
    )
    prepared = store.prepared_dir(submission.id)
    prepared.mkdir(parents=True)
    request = {
        "model": {"path": str(store.blob_path(blobs["m.onnx"])), "format": "onnx"},
        "normalization": spec.normalization and spec.normalization.model_dump(),
        "dataset": {
            "kind": "npz",
            "files": {"file": str(store.blob_path(blobs["d.npz"]))},
            "split": None,
        },
        "selection": "all",
        **{name: getattr(spec, name) for name in ("norm", "method", "clip", "input_range", "seed")},
        "bounds": {"max_bytes": 2**30, "max_samples": 1000},
        "samples_per_shard": 1000,
    }
    try:
        inspect(request, prepared)
    except (DataError, ModelError) as error:
        return {"code": error.code, "detail": str(error), "hint": error.hint} | {
            "field": getattr(error, "field", None)
        }
    certify_shard(store, settings, submission, 0, progress=lambda done, message: None)
    merge(store, submission, started_at=None)
    found: dict[str, Any] = json.loads(store.report_path(submission.id).read_text())
    lines = store.samples_path(submission.id).read_text().splitlines()
    found["rows"] = [json.loads(line) for line in lines]
    with np.load(store.counterexamples_path(submission.id)) as arrays:
        found["counterexamples"] = {name: arrays[name] for name in arrays.files}
    with np.load(prepared / "data.npz") as arrays:
        found["x"] = arrays["x"]
    return found


def npz_of(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize("divided", [True, False])
def test_what_is_proved_of_bytes_holds_for_every_one_of_them(tmp_path: Path, divided: bool) -> None:
    """The file itself, in ONNX Runtime, on all 65,536 inputs that there are."""
    model = of_bytes(divided=divided)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    answers = session.run(None, {"x": GRID})[0].argmax(1)
    x = np.random.default_rng(0).integers(0, 256, (12, 2), dtype=np.uint8)
    y = session.run(None, {"x": x})[0].argmax(1)
    found = report_of(tmp_path, model, {"x": x, "y": y}, norm="linf", epsilons=["4/255", "30/255"])
    assert found["clean_accuracy"] == 1.0, found
    assert found["radius"]["cap"] == 1.0
    assert found["model"]["takes_bytes"]
    assert "bytes from 0 to 255" in found["statement"]
    certified = 0
    for row in found["rows"]:
        away = np.abs(GRID.astype(int) - x[row["index"]].astype(int)).max(1)
        wrong = away[answers != row["label"]].min(initial=1000)
        assert row["unbounded"] or row["radius"] * 255 < wrong
        for place, epsilon in enumerate((4, 30)):
            assert not row["certified"][place] or wrong > epsilon
            assert not row["falsified"][place] or wrong <= epsilon
            certified += row["certified"][place]
    assert certified
    broken = found["counterexamples"]
    assert broken["x"].dtype == np.uint8
    assert len(broken["x"])
    assert (session.run(None, {"x": broken["x"]})[0].argmax(1) != broken["label"]).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_epsilon_whose_255_fold_no_float_holds_reaches_every_byte(
    tmp_path: Path, norm: str
) -> None:
    """There is no upper limit of epsilons."""
    x = np.random.default_rng(0).integers(0, 256, (3, 2), dtype=np.uint8)
    found = report_of(tmp_path, of_bytes(), {"x": x}, norm=norm, epsilons=["1.7e308", 2])
    largest, all_bytes = found["results"]
    assert largest["falsified"] == all_bytes["falsified"] > 0
    assert largest["certified"] == all_bytes["certified"]


@pytest.mark.parametrize(
    ("data", "spec", "code", "said"),
    [
        ({"x": np.zeros((2, 2), np.float32)}, {}, "unsupported_dtype", "takes bytes"),
        ({}, {"input_range": [0, 255]}, "invalid_input_range", "takes bytes"),
        ({}, {"normalization": {"mean": [0.5], "std": [0.5]}}, "invalid_normalization", "bytes"),
    ],
)
def test_what_does_not_go_with_bytes_is_refused(
    tmp_path: Path, data: dict[str, Any], spec: dict[str, Any], code: str, said: str
) -> None:
    data = {"x": np.zeros((2, 2), np.uint8), "y": np.zeros(2, int)} | data
    found = report_of(tmp_path, of_bytes(), data, **spec)
    assert found["code"] == code
    assert said in found["detail"]
    assert found["hint"]


def features(**spec: Any) -> tuple[bytes, dict[str, Any]]:
    nodes = [node("MatMul", ["x", "v"], ["h"]), node("Relu", ["h"], ["r"])]
    nodes.append(node("MatMul", ["r", "w"], ["y"]))
    model = graph_of(nodes, (2,), {"v": normal(0, 2, 8), "w": normal(2, 8, 3)})
    x = np.array([[-2.5, 100.5], [4.0, 101.0], [0.0, 100.0]], np.float32)
    return model.SerializeToString(), {"x": x, "y": np.zeros(3, int)}


def test_features_have_a_range_in_their_own_units(tmp_path: Path) -> None:
    model, data = features()
    asked = {"norm": "linf", "epsilons": ["1/4", 8], "input_range": [[-3, 100], [5, 101.5]]}
    found = report_of(tmp_path, model, data, **asked)
    assert found["threat"]["input_range"] == [[-3, 100], [5, 101.5]]
    assert found["threat"]["largest_distance"] == found["radius"]["cap"] == 8.0
    assert "features stay in the range that the spec gives" in found["statement"]
    assert any("Epsilon 8 reaches every input" in said for said in found["warnings"])
    refused = report_of(tmp_path, model, data, input_range=[[-3, 100], [5, 101]], norm="linf")
    assert "code" not in refused
    refused = report_of(tmp_path, model, data, input_range=[[-3, 100], [5, 100.75]])
    assert refused["code"] == "sample_out_of_range"
    assert "101 at [1] of sample 1" in refused["detail"]
    refused = report_of(tmp_path, model, data, input_range=[[-3, 1, 2], 200])
    assert (refused["code"], refused["field"]) == ("invalid_input_range", "spec.input_range")


def test_without_a_range_any_feature_is_valid_and_radii_are_told_as_they_are(
    tmp_path: Path,
) -> None:
    model, data = features()
    found = report_of(tmp_path, model, data, norm="linf", epsilons=[0.5], input_range=None)
    assert found["threat"]["clip"] is False
    assert found["threat"]["largest_distance"] is None
    assert "stay in" not in found["statement"]
    known = [row["radius"] for row in found["rows"] if row["radius"] is not None]
    assert found["radius"]["cap"] >= max(known)


def test_bytes_are_the_numbers_of_a_range_that_is_not_one_of_shares(tmp_path: Path) -> None:
    model, _ = features()
    x = np.array([[0, 3], [255, 7]], np.uint8)
    found = report_of(tmp_path, model, {"x": x}, epsilons=[1], input_range=[0, 255])
    assert found["threat"]["largest_distance"] == pytest.approx(255 * 2**0.5)
    assert found["x"].tolist() == x.tolist()


def test_bytes_that_go_into_anything_but_a_cast_are_refused(tmp_path: Path) -> None:
    data = {"x": np.zeros((2, 2), np.uint8)}
    found = report_of(tmp_path, of_bytes("Identity"), data)
    assert found["code"] == "unsupported_dtype"
    assert "Cast" in found["detail"]
