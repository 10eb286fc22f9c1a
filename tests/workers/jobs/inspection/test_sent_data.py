"""Data is what was sent: inputs that were once read wrongly, through inspection to the report."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from service.contract.schemas.report import Report, result_digest
from service.contract.schemas.submissions import JobSubmission, Spec
from service.reports import render_html
from tests.models.onnx.graphs import graph_of
from workers.jobs.datasets.arrays import Bounds, DataSet, read_npy, read_npz
from workers.jobs.inspection.child import inspect
from workers.jobs.inspection.valid_inputs import ValidInputs
from workers.jobs.report.build import build_report
from workers.jobs.report.doubts import data_doubts
from workers.verification.cascade.run import deployed_answers
from workers.verification.results import SampleResults

DIGEST = "sha256:" + "0" * 64
BOUNDS = {"max_bytes": 2**31, "max_samples": 10**6}


def inspected(
    folder: Path, model: Path, data: Path, spec: dict[str, Any], samples: int = 1000
) -> tuple[dict[str, Any], Any]:
    """facts.json and the arrays that inspection leaves for the shards."""
    request = {
        "model": {
            "path": str(model),
            "format": model.suffix.lstrip("."),
            "architecture": spec.get("architecture"),
        },
        "normalization": spec.get("normalization"),
        "dataset": {
            "kind": "npz" if data.suffix == ".npz" else "images_zip",
            "files": {"file": str(data)},
            "split": None,
        },
        "selection": samples,
        "norm": spec["norm"],
        "method": spec.get("method", "auto"),
        "clip": True,
        "seed": 0,
        "bounds": BOUNDS,
        "samples_per_shard": 50,
    }
    inspect(request, folder)
    with np.load(folder / "data.npz") as arrays:
        return json.loads((folder / "facts.json").read_text()), dict(arrays)


def reported(facts: dict[str, Any], arrays: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """The report of these samples with nothing certified."""
    prediction, margin, correct = deployed_answers(arrays["logits"], arrays["y"], 0.0)
    count = len(prediction)
    results = SampleResults(
        index=arrays["index"],
        label=arrays["y"],
        prediction=prediction,
        margin=margin.numpy(),
        radius=np.zeros(count),
        certified=np.zeros((count, 1), bool),
        falsified=np.zeros((count, 1), bool),
        method=["undecided" if ok else "misclassified" for ok in correct.tolist()],
        decided_by=[[""]] * count,
        counterexamples={},
        seconds={},
        notes={},
    )
    submission = JobSubmission.model_validate(
        {
            "id": "job",
            "kind": "certify",
            "spec": Spec.model_validate(spec).normal(),
            "model": {"digest": DIGEST, "format": "onnx", "name": "m", "size": 7},
            "dataset": {"kind": "npz", "name": "d", "id": DIGEST},
            "created_at": "2026-01-31T12:00:00.000000Z",
        }
    )
    return build_report(submission, facts, results, timing={"wall_s": 1.0}, device="cpu")


def handed(shared: Path, folder: Path, name: str) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    case = shared / "failing" / name
    if not case.is_dir():
        pytest.skip(f"no {name} among the test data")
    spec = json.loads((case / "spec.json").read_text())
    model, data = next(case.glob("model.*")), next(case.glob("data.*"))
    return *inspected(folder, model, data, spec), spec


def test_16_bit_images(shared: Path, tmp_path: Path) -> None:
    _, arrays, _ = handed(shared, tmp_path, "png-16-bit")
    assert arrays["x"][:, 0, 0, 0].tolist() == [
        np.float32(v / 65535) for v in (2000, 6000, 12000, 50000, 64000)
    ]


def test_the_class_mapping_stands_in_the_report(shared: Path, tmp_path: Path) -> None:
    facts, arrays, spec = handed(shared, tmp_path, "nested-class-folders")
    assert arrays["y"].tolist() == [0, 0, 0, 1, 1, 1]
    report = reported(facts, arrays, spec)
    assert report["dataset"]["classes"] == {"n01": 0, "n02": 1}
    page = render_html(report, [])
    assert "n02" in page[page.index("<h2>Classes</h2>") :]


def test_units_of_the_normalization_are_told(shared: Path, tmp_path: Path) -> None:
    facts, arrays, spec = handed(shared, tmp_path, "normalization-units")
    report = reported(facts, arrays, spec)
    (said,) = report["warnings"]
    assert '"mean": [0.4914, 0.4824, 0.4467]' in said
    page = render_html(report, [])
    assert page.index("The normalization looks wrong") < page.index("<h2>")
    right = {
        key: [value / 255 for value in values] for key, values in spec["normalization"].items()
    }
    (tmp_path / "right").mkdir()
    case = shared / "failing" / "normalization-units"
    facts, _ = inspected(
        tmp_path / "right",
        case / "model.onnx",
        case / "data.npz",
        {**spec, "normalization": right},
    )
    assert facts["warnings"] == []


def test_the_pairing_stands_in_the_report(shared: Path, tmp_path: Path) -> None:
    facts, arrays, spec = handed(shared, tmp_path, "state-dict-order")
    report = reported(facts, arrays, spec)
    assert report["model"]["pairing"]["second.weight"] == "linear_0.weight"
    assert any("second, first" in said for said in report["warnings"])
    assert "second.weight" in render_html(report, [])


def test_accuracy_and_rows_agree_on_ties(shared: Path, tmp_path: Path) -> None:
    facts, arrays, spec = handed(shared, tmp_path, "ties")
    report = reported(facts, arrays, spec)
    right = report["by_method"].get("undecided", 0)
    assert report["clean_accuracy"] == right / len(arrays["y"])
    assert any("have no prediction" in said for said in report["warnings"])


def test_a_tied_sample_without_labels_has_no_prediction(tmp_path: Path) -> None:
    arrays = {
        "logits": np.array([[1, 1, 0], [0, 2, 1]], np.float32),
        "y": np.array([0, 1]),
        "index": np.arange(2),
    }
    facts = {
        "layers": [], "parameters": 1, "input_shape": [2], "classes": 3, "graph_digest": DIGEST,
        "labelled": False, "total": 2,
    }  # fmt: skip
    report = reported(facts, arrays, {"norm": "l2", "epsilons": [0.1]})
    assert report["clean_accuracy"] is None
    assert report["results"][0]["undecided"] == 1


def test_an_old_report_opens() -> None:
    facts = {
        "layers": [], "parameters": 1, "input_shape": [2], "graph_digest": DIGEST,
        "labelled": True, "total": 1,
    }  # fmt: skip
    arrays = {"logits": np.eye(2, dtype=np.float32), "y": np.arange(2), "index": np.arange(2)}
    old = reported(facts, arrays, {"norm": "l2", "epsilons": [0.1]})
    del old["model"]["pairing"], old["dataset"]["classes"]
    old["result_digest"] = result_digest(old)
    assert Report.model_validate(old).dataset.classes is None
    assert "Robustness certificate" in render_html(old, [])


CIFAR = {"mean": [125.3 / 255, 123.0 / 255, 113.9 / 255], "std": [0.225]}
REAL = [
    # Published without a normalization (158 of 200 right): it was plainly trained with MNIST's.
    ("sdp-crown/mnist_mlp.onnx", "sdp-crown/mnist_200.npz", {"mean": [0.1307], "std": [0.3081]}),
    ("sdp-crown/cifar10_convsmall.onnx", "sdp-crown/cifar_200.npz", CIFAR),
    ("sdp-crown/cifar10_cnn_c.onnx", "sdp-crown/cifar_200.npz", CIFAR),
    ("colt/mnist_0.1.onnx", "sdp-crown/mnist_200.npz", {"mean": [0.1307], "std": [0.3081]}),
]


@pytest.mark.parametrize(("model", "data", "given"), REAL)
def test_no_alarm_on_published_networks(
    shared: Path, tmp_path: Path, model: str, data: str, given: dict[str, Any] | None
) -> None:
    """Right as published; in units of 0 to 255, a normalization is told wherever it costs much."""
    from models.onnx.deployed import DeployedNetwork
    from workers.jobs.inspection.normalization_check import normalization_doubt

    folder = shared / "models"
    if not (folder / model).is_file():
        pytest.skip("no published networks among the test data")
    with np.load(folder / data) as arrays:
        x = (arrays["x"].transpose(0, 3, 1, 2) / 255).astype(np.float32)
        y = arrays["y"]
    content, shape = (folder / model).read_bytes(), x.shape[1:]
    network = DeployedNetwork(content, shape, given)
    if given is not None and len(given["std"]) < len(given["mean"]):
        given = {**given, "std": given["std"] * len(given["mean"])}
    assert normalization_doubt(network, x, y, network(x), given) is None
    wrong = {"mean": [127.5], "std": [64.0]}
    network = DeployedNetwork(content, shape, wrong)
    said = normalization_doubt(network, x, y, network(x), wrong)
    assert said is not None
    assert "/ 255" not in said


def doubts(x: Any, **options: Any) -> str:
    stored = np.asarray(x)
    pixels = stored / 255 if stored.dtype == np.uint8 else stored
    data = DataSet(stored, None, np.arange(len(stored)), len(stored), **options)
    return " ".join(data_doubts(data, pixels.astype(np.float32), 10, ValidInputs()))


@pytest.mark.parametrize("wide", [2, 9, 10, 11])
def test_one_hot_rows_of_another_number_of_classes_are_told(wide: int, tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).random((2, 3)), np.eye(wide)[[1, 0]]
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    for data in (
        read_npz(tmp_path / "a.npz", "all", Bounds()),
        read_npy(tmp_path / "x.npy", tmp_path / "y.npy", "all", Bounds()),
    ):
        assert data.y is not None
        assert data.y.tolist() == [1, 0]
        said = " ".join(data_doubts(data, x.astype(np.float32), 10, ValidInputs()))
        assert (f"one-hot rows of {wide} classes, the network has 10" in said) == (wide != 10)


def test_what_looks_like_a_mistake_in_the_pixels_is_told(rng: np.random.Generator) -> None:
    whole = rng.integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    assert doubts(whole) == ""
    assert doubts(rng.random((3, 4))) == ""
    assert doubts(rng.standard_normal((3, 4))) == ""
    assert "0 and 1/255" in doubts((whole > 99).astype(np.uint8))
    assert "255 twice" in doubts(whole / 255 / 255)
    assert "pixels in [0, 255]" in doubts(whole.astype(np.float32))
    assert "pixels in [0, 255]" in doubts(rng.uniform(0, 255, (3, 4, 4)))
    assert "same value" in doubts(np.full((2, 3), 0.5))
    assert "2 class folders" in doubts(whole, classes={"a": 0, "b": 1})
    assert doubts(whole, classes={str(place): place for place in range(10)}) == ""


def test_a_sentence_stands_once_and_in_a_fixed_order() -> None:
    facts = {
        "layers": [], "parameters": 1, "input_shape": [2], "graph_digest": DIGEST,
        "labelled": True, "total": 2, "warnings": ["b", "a", "b"],
    }  # fmt: skip
    arrays = {"logits": np.eye(2, dtype=np.float32), "y": np.arange(2), "index": np.arange(2)}
    spec = {"norm": "l2", "epsilons": [str(Fraction(1, 10))]}
    assert reported(facts, arrays, spec)["warnings"] == ["a", "b"]


def test_labels_may_be_the_names_by_which_the_file_calls_its_classes(tmp_path: Path) -> None:
    names = ["benign", "malignant", "neither"]
    layer = helper.make_node("MatMul", ["x", "w"], ["y"])
    maps = helper.make_node(
        "ZipMap", ["y"], ["maps"], domain="ai.onnx.ml", classlabels_strings=names
    )
    file = graph_of([layer, maps], (3,), {"w": np.eye(3, dtype=np.float32)}, output="maps")
    of_map = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    file.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(of_map))
    file.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    model, data = tmp_path / "model.onnx", tmp_path / "data.npz"
    model.write_bytes(file.SerializeToString())
    np.savez(data, x=np.eye(3, dtype=np.float32)[::-1], y=np.array(names[::-1]))
    spec = {"norm": "l2", "epsilons": [0.1]}
    facts, arrays = inspected(tmp_path, model, data, spec)
    assert arrays["y"].tolist() == [2, 1, 0]
    report = reported(facts, arrays, spec)
    assert report["clean_accuracy"] == 1.0
    assert report["model"]["class_names"] == names
    assert "class 0 is 'benign', class 1 is 'malignant'" in report["statement"]


@pytest.mark.parametrize(
    ("turn", "words"),
    [(lambda y: (y - 1) % 10, "each label were one more"), (np.zeros_like, "better than chance")],
)
def test_labels_that_the_answers_do_not_follow_are_told(
    tmp_path: Path, turn: Any, words: str
) -> None:
    """A dense layer that is right for all of 100 samples of ten classes."""
    y = np.arange(100) % 10
    x = np.eye(10, dtype=np.float32)[y] * np.linspace(0.5, 1, 100, dtype=np.float32)[:, None]
    layer = helper.make_node("MatMul", ["x", "w"], ["y"])
    model, data = tmp_path / "model.onnx", tmp_path / "data.npz"
    model.write_bytes(
        graph_of([layer], (10,), {"w": np.eye(10, dtype=np.float32)}).SerializeToString()
    )
    for labels, said in ((y, ""), (turn(y), words)):
        np.savez(data, x=x, y=labels)
        folder = tmp_path / f"read{said}"
        folder.mkdir()
        facts, _ = inspected(folder, model, data, {"norm": "l2", "epsilons": [0.1]})
        assert said in " ".join(facts["warnings"])
        assert bool(said) == bool(facts["warnings"])


def test_data_without_labels_are_told(tmp_path: Path) -> None:
    layer = helper.make_node("MatMul", ["x", "w"], ["y"])
    model, data = tmp_path / "model.onnx", tmp_path / "data.npz"
    eye = np.eye(3, dtype=np.float32)
    model.write_bytes(graph_of([layer], (3,), {"w": eye}).SerializeToString())
    np.savez(data, x=eye)
    facts, _ = inspected(tmp_path, model, data, {"norm": "l2", "epsilons": [0.1]})
    assert not facts["labelled"]
    (said,) = facts["warnings"]
    assert "no labels" in said
