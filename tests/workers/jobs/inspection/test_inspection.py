"""What the inspection compares, refuses and states, on files that run in ONNX Runtime."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.errors import ModelError
from models.layers.kinds import ReLU
from models.onnx.deployed import DeployedNetwork
from tests.models.onnx.forms.files import written
from tests.models.onnx.graphs import graph_of, normal
from tests.workers.jobs.conftest import CLASSES, SIDE, Corridor, tiny_npz, tiny_onnx
from tests.workers.jobs.work import work
from workers.jobs.inspection.child import inspect
from workers.jobs.report.statement import statement
from workers.verification.cascade.parity import DeploymentMismatch
from workers.verification.graph.compiled_network import UnsupportedLayer
from workers.verification.layers.registry import LAYERS

pytestmark = pytest.mark.usefixtures("forked_inspections")

node = helper.make_node
#: Told by the structure of the graph, or by a comparison.
MIXED = {"batch_dependent", "deployment_mismatch"}


def mixing(batch: int | str = "n") -> bytes:
    """Averages over neighbours, across the rows of a batch; right for every row alone."""
    nodes = [
        node("Reshape", ["x", "all"], ["line"]),
        node("AveragePool", ["line"], ["mean"], kernel_shape=[1, 3], pads=[0, 1, 0, 1]),
        node("Reshape", ["mean", "rows"], ["h"]),
        node("MatMul", ["h", "w"], ["y"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "all": np.array([1, 1, 1, -1]),
        "rows": np.array([-1, 6]),
        "w": 20 * normal(0, 6, 3),
    }
    return graph_of(nodes, (6,), constants, batch=batch).SerializeToString()


def viewed_as_one(batch: int | str = "n") -> bytes:
    """Declares a batch of any size, and takes one row."""
    nodes = [node("Reshape", ["x", "one"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    constants: dict[str, NDArray[Any]] = {"one": np.array([1, 6]), "w": normal(0, 6, 3)}
    return graph_of(nodes, (6,), constants, batch=batch).SerializeToString()


def request(folder: Path, model: Path, data: Path, /, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(model), "format": "onnx", "architecture": None},
        "normalization": None,
        "dataset": {"kind": "npz", "files": {"file": str(data)}, "split": None},
        "selection": "all",
        "norm": "l2",
        "method": "auto",
        "clip": True,
        "seed": 0,
        "bounds": {"max_bytes": 2**30, "max_samples": 1000},
        "samples_per_shard": 10,
        **changes,
    }


def inspected(folder: Path, model: Path, data: Path, /, **changes: Any) -> dict[str, Any]:
    """The facts that an inspection in this process leaves."""
    folder.mkdir(exist_ok=True)
    inspect(request(folder, model, data, **changes), folder)
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return facts


def features(path: Path, count: int) -> Path:
    x = np.random.default_rng(0).random((count, 6)).astype(np.float32)
    np.savez(path, x=x, y=np.zeros(count, dtype=np.int64))
    return path


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_rows_that_depend_on_each_other_are_refused(tmp_path: Path, samples: int) -> None:
    """However few samples are selected: with one, nothing once looked at a batch of two."""
    model = tmp_path / "mixing.onnx"
    model.write_bytes(mixing())
    data = features(tmp_path / "d.npz", 5)
    with pytest.raises(ValueError) as caught:
        inspected(tmp_path / "out", model, data, selection=samples)
    assert getattr(caught.value, "code", None) in MIXED


def test_rows_that_depend_on_each_other_end_the_job(corridor: Corridor) -> None:
    model = corridor.folder / "mixing.onnx"
    model.write_bytes(mixing())
    job = corridor.submit(model, features(corridor.folder / "d.npz", 5), samples=1)
    work(corridor, job.id)
    outcome = corridor.outcome(job, 0)
    assert outcome["status"] == "failed"
    assert outcome["error"]["code"] in MIXED


def test_the_handed_graph_that_mixes_a_batch_is_refused(tmp_path: Path, shared: Path) -> None:
    folder = shared / "failing" / "batch-mixing"
    if not folder.is_dir():
        pytest.skip("the handed case is missing")
    with pytest.raises(ValueError) as caught:
        inspected(tmp_path / "o", folder / "model.onnx", folder / "data.npz", norm="linf")
    assert getattr(caught.value, "code", None) in MIXED


def test_a_batch_fixed_to_one_is_exempt_and_the_statement_says_so(corridor: Corridor) -> None:
    model = corridor.folder / "fixed.onnx"
    model.write_bytes(mixing(batch=1))
    job = corridor.submit(model, features(corridor.folder / "d.npz", 3))
    work(corridor, job.id)
    assert corridor.outcome(job, 0)["status"] == "succeeded"
    report = corridor.store.read_json(corridor.store.report_path(job.id))
    assert report is not None
    assert report["model"]["batch"] == 1
    assert "batch 1" in report["statement"]
    assert report["parity"]["inputs"]["batches"] == 2


def test_the_report_says_how_many_inputs_were_compared(corridor: Corridor) -> None:
    job = corridor.submit(samples=5)
    work(corridor, job.id)
    report = corridor.store.read_json(corridor.store.report_path(job.id))
    assert report is not None
    assert report["model"]["batch"] == "any"
    assert report["parity"]["inputs"] == {
        "batches": 26,
        "samples": 5,
        "random": 64,
        "coordinates": 64,
    }
    assert "any size" in report["statement"]
    assert report["notes"]["passed_over"] == {}


def test_a_file_that_refuses_batches_is_certified_for_batch_one(tmp_path: Path) -> None:
    """It is run one by one from then on, and nothing is claimed of batches."""
    deployed = DeployedNetwork(viewed_as_one(), (6,), None)
    assert deployed.batch == "any"
    assert deployed.settle_batch((1, 2, 3)) == 1
    assert deployed(np.zeros((5, 6), dtype=np.float32)).shape == (5, 3)
    any_size = DeployedNetwork(tiny_onnx(tmp_path / "t.onnx").read_bytes(), (1, SIDE, SIDE), None)
    assert any_size.settle_batch((1, 2, 3, 7)) == "any"
    any_size.one_by_one()
    assert any_size.batch == 1
    assert any_size(np.zeros((4, 1, SIDE, SIDE), dtype=np.float32)).shape == (4, CLASSES)


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("pixel", "random input|coordinate"),
        ("sparse", "many coordinates changed|coordinate [0-9]+ set to"),
        ("batch", "of a batch of 3"),
        ("tiny", "tiny|scaled noise|constant"),
    ],
)
def test_a_deployed_network_that_differs_off_the_samples_ends_the_inspection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, named: str
) -> None:
    """Only the deployed side is changed; what it differs on is in no sample."""
    model, data = tiny_onnx(tmp_path / "m.onnx"), tiny_npz(tmp_path / "d.npz", samples=4)
    samples = np.load(data)["x"].transpose(0, 3, 1, 2).reshape(4, -1) / np.float32(255)
    plain = DeployedNetwork.__call__

    def deviates(flat: NDArray[np.float32]) -> NDArray[np.bool_]:
        if where == "pixel":
            return flat[:, 20] == 1.0
        if where == "tiny":
            return (flat < 1e-6).all(1)
        if where == "batch":
            return np.arange(len(flat)) == (1 if len(flat) == 3 else -1)
        equal = (flat[:, None] == samples[None].astype(np.float32)).sum(2)
        return (equal == samples.shape[1] - 1).any(1)

    def changed(self: DeployedNetwork, x: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = plain(self, x)
        return np.where(deviates(x.reshape(len(x), -1))[:, None], logits + 1, logits)

    inspected(tmp_path / "fine", model, data)
    monkeypatch.setattr(DeployedNetwork, "__call__", changed)
    with pytest.raises(DeploymentMismatch, match=named):
        inspected(tmp_path / "changed", model, data)


def test_a_label_of_the_file_that_is_another_class_is_refused(tmp_path: Path) -> None:
    """By a way that nothing in the graph tells; not where the spec names the output that counts."""
    nodes = [
        node("MatMul", ["x", "w"], ["s"]),
        node("ArgMax", ["s"], ["best"], axis=1, keepdims=0),
        node("Sub", ["two", "best"], ["label"]),
    ]
    constants: dict[str, NDArray[Any]] = {"w": normal(0, 6, 3), "two": np.array(2)}
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, ["n", 3]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])]
    model = tmp_path / "labels.onnx"
    model.write_bytes(written(nodes, inputs, outputs, constants))
    data = features(tmp_path / "d.npz", 5)
    with pytest.raises(ModelError) as caught:
        inspected(tmp_path / "out", model, data)
    assert caught.value.code == "other_labels"
    named = {"path": str(model), "format": "onnx", "architecture": None, "output": "s"}
    assert inspected(tmp_path / "named", model, data, model=named)["other_outputs"] == ["label"]


@pytest.mark.parametrize("ending", ["softmax", "sigmoid"])
def test_labels_of_scores_that_float32_makes_a_tie_of_are_no_other_labels(
    tmp_path: Path, ending: str
) -> None:
    """Within the gap there is no answer, and the first of equal probabilities is no class."""
    nodes = {
        "softmax": [
            node("Softmax", ["s"], ["p"], axis=1),
            node("ArgMax", ["p"], ["label"], axis=1, keepdims=0),
        ],
        "sigmoid": [
            node("Sigmoid", ["s"], ["p"]),
            node("Greater", ["p", "half"], ["above"]),
            node("Cast", ["above"], ["label"], to=TensorProto.INT64),
        ],
    }[ending]
    count = 1 if ending == "sigmoid" else 3
    constants: dict[str, NDArray[Any]] = {"half": np.float32([0.5])}
    constants["w"] = normal(0, 6, count) * np.float32(1e-9)
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, None),
        helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", count]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])]
    model = tmp_path / "small.onnx"
    nodes = [node("MatMul", ["x", "w"], ["s"]), *nodes]
    model.write_bytes(written(nodes, inputs, outputs, constants))
    facts = inspected(tmp_path / "out", model, features(tmp_path / "d.npz", 5))
    assert facts["output"] == "p"


def test_the_same_request_leaves_the_same_facts(tmp_path: Path) -> None:
    model, data = tiny_onnx(tmp_path / "m.onnx"), tiny_npz(tmp_path / "d.npz")
    first, again = (inspected(tmp_path / name, model, data, seed=7) for name in "ab")
    seconds = {"forward_s": 0, "prepare_s": 0}
    assert {**first, **seconds} == {**again, **seconds}


def test_a_layer_that_the_method_has_no_rule_for_fails_before_any_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = tiny_onnx(tmp_path / "m.onnx"), tiny_npz(tmp_path / "d.npz", samples=3)
    monkeypatch.setitem(LAYERS, ReLU, replace(LAYERS[ReLU], relax=None))
    inspected(tmp_path / "auto", model, data)
    with pytest.raises(UnsupportedLayer, match="'crown' has no rule for the layer 'relu'"):
        inspected(tmp_path / "crown", model, data, method="crown")
    assert not (tmp_path / "crown" / "facts.json").exists()


@pytest.mark.parametrize("labelled", [True, False])
def test_the_statement_says_what_batch_it_is_about(labelled: bool) -> None:
    options: dict[str, Any] = {"norm": "l2", "valid": None, "failure_probability": 0.0}
    one, some = (
        statement(soundness="sound", labelled=labelled, batch=batch, **options)
        for batch in (1, "any")
    )
    assert "batch 1" in one
    assert "batch of any size" in some
    assert "batch" not in statement(soundness="estimate", labelled=labelled, batch=1, **options)
