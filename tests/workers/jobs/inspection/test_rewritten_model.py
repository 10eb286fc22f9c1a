"""With ``summation: partial-sums`` the rewritten file is the model of a job: all that is said of it
is said of no other, and it is there to be deployed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from onnx import TensorProto, helper, numpy_helper

from check.verify import main as certserve_check
from models import rewriting
from models.layers.kinds import Linear
from models.network import Network
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from service.cli.checks.verify_report import spec_of_file
from service.contract.outcomes import rewritten_model
from service.contract.schemas.submissions import JobSubmission
from tests.models.onnx.graphs import graph_of, normal
from tests.workers.jobs.conftest import Corridor
from tests.workers.jobs.work import work
from workers.jobs.inspection.child import inspect
from workers.jobs.inspection.loaded_model import LoadedModel
from workers.jobs.inspection.rewritten_model import rewritten_model as written_anew
from workers.jobs.items.prepare import REWRITTEN, prepare
from workers.verification.cascade.parity import DeploymentMismatch
from workers.verification.results import SampleResults

pytestmark = pytest.mark.usefixtures("forked_inspections")

node = helper.make_node
WIDTH, CLASSES, SAMPLES = 256, 3, 6


def weights() -> dict[str, np.ndarray[Any, Any]]:
    rotation = np.linalg.qr(normal(0, WIDTH, WIDTH).astype(np.float64))[0].astype(np.float32)
    return {"w": rotation, "b": normal(1, WIDTH) / 10, "v": normal(2, WIDTH, CLASSES) / 16}


def wide_onnx(*, final: str = "", classes: int = CLASSES) -> bytes:
    """A rotation, ReLU, a dense head, on [n, 256]."""
    last = [node("MatMul", ["r", "v"], ["l" if final else "y"])]
    last += [node(final, ["l"], ["y"])] if final else []
    nodes = [node("Gemm", ["x", "w", "b"], ["h"]), node("Relu", ["h"], ["r"]), *last]
    constants = weights()
    constants["v"] = constants["v"][:, :classes]
    return graph_of(nodes, (WIDTH,), constants).SerializeToString()


def wide_npz(path: Path) -> Path:
    x = np.random.default_rng(0).random((SAMPLES, WIDTH)).astype(np.float32)
    np.savez(path, x=x)
    return path


def submitted(corridor: Corridor, model: bytes, **spec: Any) -> JobSubmission:
    path = corridor.folder / "wide.onnx"
    path.write_bytes(model)
    spec = {"method": "lipschitz", "epsilons": [0.01], "attack": None, **spec}
    return corridor.submit(path, wide_npz(corridor.folder / "wide.npz"), **spec)


def ended(corridor: Corridor, job: JobSubmission) -> dict[str, Any]:
    """The report of a job that succeeds."""
    work(corridor, job.id)
    outcome = corridor.outcome(job, 0)
    assert outcome["status"] == "succeeded", outcome["error"]
    report = corridor.store.read_json(corridor.store.report_path(job.id))
    assert report is not None
    return report


def test_the_report_is_about_the_rewritten_file_and_names_both(corridor: Corridor) -> None:
    plain = ended(corridor, submitted(corridor, wide_onnx()))
    job = submitted(corridor, wide_onnx(), summation="partial-sums")
    report = ended(corridor, job)
    assert job.model is not None
    upload, made = job.model.digest, report["model"]["id"]
    assert plain["model"]["id"] == upload != made
    assert plain["model"]["rewritten_from"] is None
    assert report["model"]["name"] == "wide.partial-sums.onnx"
    told = report["model"]["rewritten_from"]
    assert (told["id"], told["format"], told["name"]) == (upload, "onnx", "wide.onnx")
    assert told["inputs"] == report["parity"]["inputs"]
    assert 0 < told["largest_share"] <= 1
    assert "NOT the uploaded one" in report["statement"]
    assert made in report["statement"]
    assert upload in report["statement"]
    assert upload not in plain["statement"]
    assert report["graph_digest"] != plain["graph_digest"]
    # The file is in the store, a model of the job's owner, and the one that was certified.
    assert rewritten_model(corridor.store, job.id) == made
    content = corridor.store.blob_path(made).read_bytes()
    assert "sha256:" + hashlib.sha256(content).hexdigest() == made
    record = corridor.store.record("models", made)
    assert record is not None
    assert record["owners"] == {"": ["wide.partial-sums.onnx"]}
    assert import_onnx_bytes(content).graph_digest() == report["graph_digest"]
    x = np.load(corridor.folder / "wide.npz")["x"]
    both = [OnnxRuntimeModel(data, (WIDTH,))(x) for data in (wide_onnx(), content)]
    assert 0 < np.abs(both[0] - both[1]).max() == pytest.approx(told["difference"])
    # It is worth it: float32 takes less.
    assert report["radius"]["mean"] > plain["radius"]["mean"]


def test_its_certificate_is_proved_again_with_the_rewritten_file(
    corridor: Corridor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = submitted(corridor, wide_onnx(), summation="partial-sums")
    report = ended(corridor, job)
    certificate = corridor.store.certificate_path(job.id)
    assert hashlib.sha256(certificate.read_bytes()).hexdigest() in report["certificate_digest"]
    uploaded = corridor.folder / "wide.onnx"
    rewritten = corridor.store.blob_path(report["model"]["id"])
    for model, status in ((rewritten, 0), (uploaded, 1)):
        assert certserve_check([str(certificate), "--model", str(model)]) == status
    said = capsys.readouterr().out
    assert "the model's file has all" in said
    assert "not in the model's file" in said


def test_shards_work_with_the_file_that_was_rewritten(corridor: Corridor) -> None:
    """And counterexamples are found by it: an attack that breaks every sample."""
    job = submitted(
        corridor,
        wide_onnx(),
        summation="partial-sums",
        epsilons=[2.0],
        attack={"steps": 20, "restarts": 1, "audit": 0.0, "seed": 0},
    )
    report = ended(corridor, job)
    assert report["results"][0]["falsified"] > 0
    content = corridor.store.blob_path(report["model"]["id"]).read_bytes()
    found = SampleResults.load(corridor.store.shard_path(job.id, 0))
    for key, point in found.counterexamples.items():
        row = int(key.split(",")[0])
        answer = OnnxRuntimeModel(content, (WIDTH,))(point[None]).argmax()
        assert answer != found.label[row]


def test_what_a_killed_worker_left_out_is_made_up_for(corridor: Corridor) -> None:
    """The folder is published before the model is: nothing else may come between."""
    job = submitted(corridor, wide_onnx(), summation="partial-sums")
    prepare(corridor.store, corridor.settings, job)
    made = rewritten_model(corridor.store, job.id)
    assert made is not None
    record = corridor.store.data_dir / "models" / f"{made.removeprefix('sha256:')}.json"
    before = corridor.store.blob_path(made).read_bytes()
    for path in (record, corridor.store.blob_path(made)):
        path.unlink()
    prepare(corridor.store, corridor.settings, job)
    assert record.is_file()
    assert corridor.store.blob_path(made).read_bytes() == before
    assert (corridor.store.prepared_dir(job.id) / REWRITTEN).read_bytes() == before


def test_a_rewritten_file_that_is_rewritten_again_is_itself(corridor: Corridor) -> None:
    """So that ``verify-report --recheck`` certifies the very file."""
    first = ended(corridor, submitted(corridor, wide_onnx(), summation="partial-sums"))
    content = corridor.store.blob_path(first["model"]["id"]).read_bytes()
    again = ended(corridor, submitted(corridor, content, summation="partial-sums"))
    assert again["model"]["id"] == first["model"]["id"]
    assert again["model"]["rewritten_from"] is None
    assert any("as it was uploaded" in warning for warning in again["warnings"])
    assert "NOT the uploaded one" not in again["statement"]
    assert again["radius"] == first["radius"]


def inspected(folder: Path, model: bytes, **changes: Any) -> dict[str, Any]:
    """The facts that an inspection in this process leaves."""
    out = folder / "out"
    out.mkdir(exist_ok=True, parents=True)
    suffix = changes.pop("suffix", "onnx")
    path = folder / f"m.{suffix}"
    path.write_bytes(model)
    request = {
        "model": {
            "path": str(path),
            "format": suffix,
            "architecture": changes.pop("architecture", None),
            "source": {"id": "sha256:0", "format": suffix, "name": path.name},
        },
        "normalization": None,
        "dataset": {
            "kind": "npz",
            "files": {"file": str(wide_npz(folder / "d.npz"))},
            "split": None,
        },
        "selection": "all",
        "norm": "l2",
        "method": "auto",
        "clip": True,
        "seed": 0,
        "bounds": {"max_bytes": 2**30, "max_samples": 1000},
        "samples_per_shard": 10,
        "summation": "partial-sums",
        **changes,
    }
    inspect(request, out)
    facts: dict[str, Any] = json.loads((out / "facts.json").read_text())
    return facts


def test_a_rewritten_file_that_is_another_function_ends_the_inspection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if rewriting had a fault: its own graph agrees with it, the uploaded one does not."""
    plain: Callable[[Network], rewriting.Rewritten] = rewriting.rewritten

    def faulty(network: Network) -> rewriting.Rewritten:
        found = plain(network)
        with torch.no_grad():
            kernels = [p for n, p in found.network.named_parameters() if n.endswith("weight")]
            kernels[0][3, 0] += 1e-5
        return replace(found, network=found.network)

    monkeypatch.setattr("workers.jobs.inspection.rewritten_model.rewritten", faulty)
    with pytest.raises(DeploymentMismatch, match="the rewritten network is another function"):
        inspected(tmp_path, wide_onnx())


def test_what_no_time_was_left_for_has_no_difference(tmp_path: Path) -> None:
    facts = inspected(tmp_path, wide_onnx(), time_budget_s=0.0)
    told = facts["rewritten"]["from"]
    assert (told["difference"], told["largest_share"], told["inputs"]) == (None, None, {})
    assert facts["parity"]["unchecked"] > 0


def test_a_normalisation_in_front_stays_there(tmp_path: Path) -> None:
    given = {"mean": [0.5], "std": [0.25]}
    facts = inspected(tmp_path, wide_onnx(), normalization=given)
    assert facts["normalization_outside"] == given
    assert any("without the spec's normalisation" in warning for warning in facts["warnings"])
    assert facts["rewritten"]["from"]["layers"]
    network = Network.load(tmp_path / "out")
    x = torch.rand(4, WIDTH)
    expected = import_onnx_bytes(wide_onnx()).normalized([0.5], [0.25])(x)
    assert torch.allclose(network(x), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("final", "classes", "told"),
    [
        ("Softmax", 3, "the scores before the final Softmax"),
        ("Sigmoid", 1, "two scores, 0 and the uploaded file's one before the final Sigmoid"),
    ],
)
def test_another_form_of_the_answer_is_told(
    tmp_path: Path, final: str, classes: int, told: str
) -> None:
    facts = inspected(tmp_path, wide_onnx(final=final, classes=classes))
    assert any(told in warning for warning in facts["warnings"])
    assert (facts["dropped_output"], facts["binary"]) == (None, False)
    content = (tmp_path / "out" / REWRITTEN).read_bytes()
    x = np.load(tmp_path / "d.npz")["x"]
    scores = OnnxRuntimeModel(content, (WIDTH,))(x)
    before = OnnxRuntimeModel(wide_onnx(final=final, classes=classes), (WIDTH,))(x)
    if classes == 1:
        assert scores.shape == (SAMPLES, 2)
    else:
        assert np.abs(scores - before).max() < 1e-5


def wide_state_dict(folder: Path, **changes: Any) -> dict[str, Any]:
    """The facts of an inspection of the same network as a state dict."""
    held = weights()
    tensors = {
        "0.weight": held["w"].T.copy(),
        "0.bias": held["b"],
        "2.weight": held["v"].T.copy(),
        "2.bias": np.zeros(CLASSES, dtype=np.float32),
    }
    layers = [
        {"kind": "linear", "out": WIDTH, "name": "0"},
        {"kind": "relu"},
        {"kind": "linear", "out": CLASSES, "name": "2"},
    ]
    return inspected(
        folder,
        safetensors.numpy.save(tensors),
        suffix="safetensors",
        architecture={"input": [WIDTH], "layers": layers},
        **changes,
    )


def test_a_state_dict_is_rewritten_as_the_file_that_would_be_made_of_it(tmp_path: Path) -> None:
    facts = wide_state_dict(tmp_path)
    assert facts["rewritten"]["name"] == "m.partial-sums.onnx"
    assert facts["pairing"]
    x = np.load(tmp_path / "d.npz")["x"]
    content = (tmp_path / "out" / REWRITTEN).read_bytes()
    expected = OnnxRuntimeModel(wide_onnx(), (WIDTH,))(x)
    assert np.abs(OnnxRuntimeModel(content, (WIDTH,))(x) - expected).max() < 1e-5


def test_the_rewritten_file_is_certified_again_as_the_file_that_it_is(tmp_path: Path) -> None:
    """What the spec says of the upload, its output, its graph, its normalisation, is not said of
    what was made of it: ``verify-report --recheck`` asks for the same network."""
    normalization = {"mean": [0.5], "std": [0.25]}
    spec = {"normalization": normalization, "summation": "partial-sums", "samples": 3}
    told: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (wide_state_dict(tmp_path / "d", normalization=normalization), {"architecture": {}}),
        (inspected(tmp_path / "o", wide_onnx(), normalization=normalization), {"output": "y"}),
        (
            inspected(tmp_path / "b", wide_onnx(final="Sigmoid", classes=1)),
            {"binary": True, "normalization": None},
        ),
    ]
    for (facts, more), folder in zip(told, ("d", "o", "b"), strict=True):
        rewritten_from = facts["rewritten"]["from"]
        report = {"spec": {**spec, **more}, "model": {"rewritten_from": rewritten_from}}
        asked = spec_of_file(report)
        assert not asked.keys() & {"samples", "summation", "output", "binary", "architecture"}
        content = (tmp_path / folder / "out" / REWRITTEN).read_bytes()
        changes = {"summation": "as-uploaded", "normalization": asked.get("normalization")}
        again = inspected(tmp_path / (folder + "2"), content, **changes)
        assert again["graph_digest"] == facts["graph_digest"], folder
    inside, outside, _ = (facts["warnings"] for facts, _ in told)
    assert any("normalises its input itself" in warning for warning in inside)
    assert not any("normalises its input itself" in warning for warning in outside)
    # A report about the uploaded file asks for all that it was asked.
    plain = {"spec": {**spec, "output": "y"}, "model": {"rewritten_from": None}}
    assert spec_of_file(plain) == {
        "normalization": normalization,
        "summation": "partial-sums",
        "output": "y",
    }


def test_a_rewritten_file_beyond_the_limits_is_refused_by_that_reason() -> None:
    """Its nodes are not those of the upload, which has a third of them."""
    constants, last = {"w": normal(0, 27, 27), "v": normal(1, 27, CLASSES)}, "x"
    nodes = []
    for layer in range(1000):
        nodes.append(node("MatMul", [last, "w"], [f"h{layer}"]))
        nodes.append(node("Relu", [f"h{layer}"], [f"r{layer}"]))
        last = f"r{layer}"
    nodes.append(node("MatMul", [last, "v"], ["y"]))
    data = graph_of(nodes, (27,), constants).SerializeToString()
    with pytest.raises(ValueError, match="the rewritten file is beyond what is taken") as caught:
        written_anew(LoadedModel(import_onnx_bytes(data), data, None))
    assert (caught.value.code, caught.value.field) == ("not_rewritable", "spec.summation")  # type: ignore[attr-defined]


def test_a_model_that_takes_bytes_is_refused(tmp_path: Path) -> None:
    nodes = [node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), node("MatMul", ["f", "v"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(weights()["v"], "v")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with pytest.raises(ValueError, match="takes bytes") as caught:
        inspected(tmp_path, model.SerializeToString())
    assert (caught.value.code, caught.value.field) == ("not_rewritable", "spec.summation")  # type: ignore[attr-defined]


def test_a_narrow_network_is_certified_as_it_is(tmp_path: Path) -> None:
    stream = io.BytesIO()
    stream.write(
        graph_of(
            [node("MatMul", ["x", "s"], ["h"]), node("Relu", ["h"], ["r"]),
             node("MatMul", ["r", "v"], ["y"])],
            (8,), {"s": normal(0, 8, 8), "v": normal(1, 8, CLASSES)},
        ).SerializeToString()
    )  # fmt: skip
    np.savez(tmp_path / "n.npz", x=np.random.default_rng(0).random((3, 8)).astype(np.float32))
    facts = inspected(
        tmp_path,
        stream.getvalue(),
        dataset={"kind": "npz", "files": {"file": str(tmp_path / "n.npz")}, "split": None},
    )
    assert facts["rewritten"] is None
    assert not (tmp_path / "out" / REWRITTEN).exists()
    assert any("certified as it was uploaded" in warning for warning in facts["warnings"])
    assert Linear.kind in {layer["kind"] for layer in facts["layers"]}
