"""POST /certify over real HTTP: what is accepted is on disk, what is wrong says what and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.contract.ledger.ledger import Lease, Ledger
from service.contract.settings import Settings
from service.contract.storage.journal import JournalReader
from service.contract.storage.store import Store
from tests.service.uploads_by_hand import (
    checkpoint,
    idx_pair,
    images_zip,
    npz,
    onnx_model,
    safetensors,
)

SPEC = {"norm": "l2", "epsilons": ["36/255", 0.5]}
DROP = object()


def post(api: httpx.Client, spec: Any = SPEC, **fields: Any) -> httpx.Response:
    """Post an ONNX model and a small npz; fields replace or (DROP) remove parts of the form."""
    form: dict[str, Any] = {
        "model": ("net.onnx", onnx_model()),
        "dataset": ("data.npz", npz()),
        "spec": DROP if spec is DROP else spec if isinstance(spec, str) else json.dumps(spec),
    }
    parts = {name: value for name, value in (form | fields).items() if value is not DROP}
    files = {n: (None, part) if isinstance(part, str) else part for n, part in parts.items()}
    return api.post("/certify", files=files)


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert problem["status"] == status
    assert {"type", "title", "detail"} <= set(problem)
    return problem


def test_a_submission_is_answered_202_and_is_in_journal_store_and_ledger(
    api: httpx.Client, store: Store, ledger: Ledger
) -> None:
    answer = post(api)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert set(job) == {
        "id", "kind", "status", "progress", "created_at", "started_at", "finished_at", "error",
        "model_id", "dataset_id", "links",
    }  # fmt: skip
    assert set(job["progress"]) == {"done", "total", "unit", "message", "eta_s"}
    assert set(job["links"]) == {
        *("self", "events", "report", "model", "training", "pareto", "cascade", "certificate"),
        "rewritten",
    }
    assert (job["kind"], job["status"], job["error"]) == ("certify", "queued", None)
    (kept,) = JournalReader(store.folder("journal")).read()
    assert kept.id == job["id"]
    assert kept.spec["epsilons"] == ["12/85", "1/2"]
    assert kept.spec["attack"] == {"steps": 40, "restarts": 1, "audit": 0.05, "seed": 0}
    assert kept.model is not None
    assert store.blob_path(kept.model.digest).read_bytes() == onnx_model()
    assert list(store.folder("tmp").iterdir()) == []
    assert isinstance(ledger.lease(job["id"], worker="w"), Lease)
    shown = api.get(f"/jobs/{job['id']}").json()
    assert shown["status"] == "running"
    assert shown["spec"] == kept.spec, "defaults filled in"
    assert shown["plan"] is shown["links"]["training"] is None
    assert shown["model_id"] == job["model_id"] == kept.model.digest


@pytest.mark.parametrize(
    ("spec", "code", "field"),
    [
        ('{"norm": "l2", ', "invalid_json", "spec"),
        ('{"norm": "l2", "epsilons": [NaN]}', "invalid_json", "spec"),
        ("[" * 100_000, "invalid_json", "spec"),
        ('{"norm": "\\ud800", "epsilons": [1]}', "invalid_json", "spec"),
        ([], "invalid_spec", "spec"),
        ({**SPEC, "norm": "l1"}, "invalid_spec", "spec.norm"),
        ({"epsilons": [1]}, "missing_field", "spec.norm"),
        ({"norm": "l2"}, "missing_field", "spec.epsilons"),
        ({**SPEC, "epsilons": []}, "invalid_spec", "spec.epsilons"),
        ({**SPEC, "epsilons": 0.1}, "invalid_spec", "spec.epsilons"),
        ({**SPEC, "epsilons": [0.1, -1]}, "invalid_epsilon", "spec.epsilons.1"),
        ({**SPEC, "epsilons": [0]}, "invalid_epsilon", "spec.epsilons.0"),
        ({**SPEC, "epsilons": ["NaN"]}, "invalid_epsilon", "spec.epsilons.0"),
        ({**SPEC, "epsilons": ["inf"]}, "invalid_epsilon", "spec.epsilons.0"),
        ({**SPEC, "epsilons": ["abc"]}, "invalid_epsilon", "spec.epsilons.0"),
        ({**SPEC, "epsilons": ["1/0"]}, "invalid_epsilon", "spec.epsilons.0"),
        ({**SPEC, "epsilons": ["1e999999999"]}, "invalid_epsilon", "spec.epsilons.0"),
        ({**SPEC, "epsilons": [True]}, "invalid_epsilon", "spec.epsilons.0"),
        ({**SPEC, "method": "magic"}, "unknown_method", "spec.method"),
        ({**SPEC, "epsilon": 0.1}, "unknown_field", "spec.epsilon"),
        ({**SPEC, "attack": {"stepz": 1}}, "unknown_field", "spec.attack.stepz"),
        ({**SPEC, "samples": 0}, "invalid_spec", "spec.samples"),
        ({**SPEC, "samples": -3}, "invalid_spec", "spec.samples"),
        ({**SPEC, "samples": "some"}, "invalid_spec", "spec.samples"),
        ({**SPEC, "samples": 2**53}, "invalid_spec", "spec.samples"),
        ({**SPEC, "indices": [1, 1]}, "invalid_indices", "spec.indices"),
        ({**SPEC, "indices": [-1]}, "invalid_spec", "spec.indices.0"),
        ({**SPEC, "indices": [4, 5]}, "invalid_indices", "spec.indices"),
        (
            {**SPEC, "normalization": {"mean": [0.5], "std": [0]}},
            "invalid_normalization",
            "spec.normalization",
        ),
        (
            {**SPEC, "normalization": {"mean": [0.5, 0.5], "std": [1]}},
            "invalid_normalization",
            "spec.normalization",
        ),
        (
            {**SPEC, "normalization": {"mean": [1e39], "std": [1]}},
            "invalid_normalization",
            "spec.normalization",
        ),
        (
            {**SPEC, "normalization": {"mean": [0.5], "std": [1e-40]}},
            "invalid_normalization",
            "spec.normalization",
        ),
        ('{"normalization": {"mean": [0], "std": [NaN]}}', "invalid_json", "spec"),
        ({**SPEC, "architecture": "mnist-small"}, "unexpected_architecture", "spec.architecture"),
        ({**SPEC, "architecture": "resnet-9000"}, "unknown_architecture", "spec.architecture"),
        ({**SPEC, "soundness": "roughly"}, "invalid_spec", "spec.soundness"),
        ({**SPEC, "time_budget_s": 0}, "invalid_spec", "spec.time_budget_s"),
        ({**SPEC, "effort": "heroic"}, "invalid_spec", "spec.effort"),
        ({**SPEC, "sample_time_s": -1}, "invalid_spec", "spec.sample_time_s"),
    ],
)  # fmt: skip
def test_a_wrong_spec_is_refused_with_code_and_field(
    api: httpx.Client, store: Store, spec: Any, code: str, field: str
) -> None:
    answer = post(api, spec)
    problem = refused(answer, 400 if code == "invalid_json" else 422, code)
    assert problem["field"].startswith(field)
    assert list(store.folder("journal").iterdir()) == []


def test_an_unknown_method_is_answered_with_the_known_ones(api: httpx.Client) -> None:
    problem = refused(post(api, {**SPEC, "method": "magic"}), 422, "unknown_method")
    known = [row["name"] for row in api.get("/methods").json()["items"]]
    assert all(name in problem["detail"] for name in known)
    assert known[0] == "auto"


@pytest.mark.parametrize("epsilon", [1e20, "1e20", "100000000000000000000", 1e-30, 3])
def test_any_finite_positive_epsilon_is_accepted(api: httpx.Client, epsilon: Any) -> None:
    assert post(api, {**SPEC, "epsilons": [epsilon]}).status_code == 202


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"spec": DROP}, 422, "missing_field"),
        ({"model": DROP}, 422, "missing_field"),
        ({"dataset": DROP}, 422, "missing_field"),
        ({"model": DROP, "model_id": "sha256:" + "0" * 64}, 422, "unknown_model"),
        ({"model": DROP, "model_id": "../../etc/passwd"}, 422, "unknown_model"),
        ({"model_id": "sha256:" + "0" * 64}, 422, "conflicting_fields"),
        ({"dataset": DROP, "dataset_id": "sha256:" + "0" * 64}, 422, "unknown_dataset"),
        ({"dataset": DROP, "dataset_id": "imagenet"}, 422, "unknown_dataset"),
        ({"dataset_id": "digits"}, 422, "conflicting_fields"),
        ({"model": ("net.onnx", b"")}, 422, "empty_file"),
        ({"dataset": ("data.npz", b"")}, 422, "empty_file"),
        ({"model": ("net.exe", b"MZ")}, 415, "unsupported_format"),
        ({"model": ("onnx", b"MZ")}, 415, "unsupported_format"),
        ({"dataset": ("data.csv", b"1,2")}, 415, "unsupported_format"),
        ({"model": "just text"}, 422, "missing_filename"),
        ({"model": ("net.onnx", b"garbage" * 10)}, 422, "invalid_onnx"),
        ({"colour": "blue"}, 422, "unknown_field"),
        ({"dataset_labels": ("y.gz", idx_pair()[1])}, 422, "invalid_input"),
        ({"model": ("w.safetensors", safetensors())}, 422, "missing_architecture"),
        ({"dataset": ("t.gz", idx_pair()[0])}, 422, "missing_field"),
    ],
)
def test_a_wrong_form_is_refused_and_leaves_nothing(
    api: httpx.Client, store: Store, fields: dict[str, Any], status: int, code: str
) -> None:
    refused(post(api, **fields), status, code)
    assert list(store.folder("tmp").iterdir()) == []
    assert list(store.folder("journal").iterdir()) == []


LAYERS = {"input": [4], "layers": [{"kind": "linear", "out": 2}]}


@pytest.mark.parametrize(
    ("model", "dataset", "spec"),
    [
        (("w.safetensors", safetensors()), ("d.npz", npz()), {"architecture": "mnist-small"}),
        (
            ("w.pt", checkpoint()),
            ("d.npz", npz()),
            {"architecture": LAYERS},
        ),
        (("W.PTH", checkpoint()), ("d.NPZ", npz()), {"architecture": "mnist-4c3f"}),
        (("n.onnx", onnx_model()), ("d.zip", images_zip()), {}),
        (("n.onnx", onnx_model()), ("d.npz", npz(x=np.zeros((2, 9), np.float32))), {}),
    ],
)
def test_every_format_is_accepted(api: httpx.Client, model: Any, dataset: Any, spec: Any) -> None:
    answer = post(api, {**SPEC, **spec}, model=model, dataset=dataset)
    assert answer.status_code == 202, answer.text


def test_an_idx_pair_is_one_data_set(api: httpx.Client) -> None:
    images, labels = idx_pair()
    answer = post(api, dataset=("x.gz", images), dataset_labels=("y.gz", labels))
    assert answer.status_code == 202, answer.text
    shown = api.get(f"/datasets/{answer.json()['dataset_id']}").json()
    assert (shown["format"], shown["samples"], shown["shape"]) == ("idx", 3, [2, 2])


def test_what_was_uploaded_can_be_named_in_json(api: httpx.Client) -> None:
    first = post(api).json()
    body = {"model_id": first["model_id"], "dataset": first["dataset_id"], "spec": SPEC}
    again = api.post("/certify", json=body)
    assert again.status_code == 202, again.text
    assert again.json()["id"] > first["id"]
    digits = api.post("/certify", json={**body, "dataset": "digits"}).json()
    assert digits["dataset_id"] is None


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[]", 422, "invalid_request"),
        (b"{}", 422, "missing_field"),
        (b'{"model_id":"x","dataset":"digits","spec":{}}', 422, "missing_field"),
        (b'{"model_id":"x","dataset":"digits","spec":{},"a":1}', 422, "unknown_field"),
    ],
)
def test_a_wrong_json_body_is_refused(
    api: httpx.Client, body: bytes, status: int, code: str
) -> None:
    headers = {"content-type": "application/json"}
    refused(api.post("/certify", content=body, headers=headers), status, code)


def test_other_media_types_and_cut_off_bodies_are_refused(api: httpx.Client) -> None:
    text = {"content-type": "text/plain"}
    refused(api.post("/certify", content=b"hi", headers=text), 415, "unsupported_media_type")
    form = {"content-type": "multipart/form-data"}
    refused(api.post("/certify", content=b"hi", headers=form), 400, "invalid_multipart")
    form = {"content-type": "multipart/form-data; boundary=x"}
    for body in (b"hi", b'--x\r\nContent-Disposition: form-data; name="spec"\r\n\r\n{}'):
        refused(api.post("/certify", content=body, headers=form), 400, "invalid_multipart")


def test_an_upload_over_the_limit_is_refused_and_forgotten(
    settings: Settings, serve: Any, store: Store
) -> None:
    api = serve(settings.model_copy(update={"max_model_bytes": 1000, "max_dataset_bytes": 5000}))
    refused(post(api, model=("net.onnx", bytes(3_000_000))), 413, "upload_too_large")
    refused(post(api, dataset=("d.npz", bytes(3_000_000))), 413, "upload_too_large")
    assert list(store.folder("tmp").iterdir()) == []
    assert api.get("/models").json()["items"] == []


def test_registered_names_are_found_in_folders_and_uploads(
    settings: Settings, serve: Any, store: Store, tmp_path: Path
) -> None:
    folder = tmp_path / "sources" / "mnist"
    folder.mkdir(parents=True)
    images, labels = idx_pair()
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(images)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(labels)
    api = serve(settings.model_copy(update={"data_sources": (folder.parent,)}))

    def used() -> Any:
        return [job.dataset for job in JournalReader(store.folder("journal")).read()][-1]

    assert post(api, dataset=DROP, dataset_id="mnist").status_code == 202
    found = used()
    assert (found.kind, found.split, found.id) == ("idx", "test", None)
    assert found.paths["images"] == str(folder / "t10k-images-idx3-ubyte.gz")
    problem = refused(post(api, dataset=DROP, dataset_id="mnist:train"), 422, "unknown_dataset")
    assert str(folder.parent) in problem["detail"]
    # A file that happens to be called mnist.npz takes no registered name; an explicit name does.
    assert post(api, dataset=("mnist.npz", npz())).status_code == 202
    assert post(api, dataset="mnist").status_code == 202
    assert used().kind == "idx"
    api.post("/datasets", files={"dataset": ("mnist.npz", npz()), "name": (None, "mnist")})
    assert post(api, dataset="mnist").status_code == 202
    assert used().kind == "npz"


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("norm", "belongs in the field spec"),
        ("labels", "did you mean 'dataset_labels'?"),
        ("modell", "did you mean 'model'?"),
        ("images", "did you mean 'dataset'?"),
    ],
)
def test_a_field_that_does_not_exist_says_which_one_may_be_meant(
    api: httpx.Client, field: str, words: str
) -> None:
    problem = refused(post(api, **{field: "linf"}), 422, "unknown_field")
    assert words in problem["detail"]
    known = problem["detail"].partition("known: ")[2].split(", ")
    assert len(known) == len(set(known))
