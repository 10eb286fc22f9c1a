"""A model with files beside it over real HTTP: what is kept under which id, and what is refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import httpx
import pytest

from service.contract.storage.journal import JournalReader
from service.contract.storage.store import Store
from tests.service.uploads_by_hand import npz, onnx_model, safetensors

SPEC = json.dumps({"norm": "l2", "epsilons": ["36/255"]})


def post(api: httpx.Client, data: dict[str, bytes], **fields: Any) -> httpx.Response:
    """Post a model with these files beside it; fields replace parts of the form."""
    form = {"model": ("net.onnx", onnx_model()), "dataset": ("d.npz", npz()), **fields}
    files: list[tuple[str, Any]] = [("spec", (None, SPEC)), *form.items()]
    return api.post(
        "/certify", files=[*files, *(("model_data", (name, b)) for name, b in data.items())]
    )


def sha(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def test_the_id_is_of_names_and_contents_in_order(api: httpx.Client, store: Store) -> None:
    answer = post(api, {"net.b": b"two", "net.a": b"one"})
    assert answer.status_code == 202, answer.text
    (kept,) = JournalReader(store.folder("journal")).read()
    assert kept.model is not None
    rows = [["net.onnx", sha(onnx_model())], ["net.a", sha(b"one")], ["net.b", sha(b"two")]]
    assert kept.model.digest == sha(json.dumps(rows, separators=(",", ":")).encode())
    assert kept.model.data == {"net.a": sha(b"one"), "net.b": sha(b"two")}
    for content in (onnx_model(), b"one", b"two"):
        assert store.blob_path(sha(content)).read_bytes() == content
    assert store.blob_path(kept.model.file).read_bytes() == onnx_model()
    # The same again, in another order, is the same model; another content is another one.
    again = post(api, {"net.a": b"one", "net.b": b"two"}).json()
    assert again["model_id"] == answer.json()["model_id"]
    assert post(api, {"net.a": b"one", "net.b": b"2"}).json()["model_id"] != again["model_id"]
    shown = api.get(f"/models/{again['model_id']}").json()
    assert shown["links"]["onnx"] is None
    gone = api.get(f"/models/{again['model_id']}/onnx")
    assert (gone.status_code, gone.json()["code"]) == (404, "no_onnx")
    assert "certify" in gone.json()["hint"]


def test_models_take_them_too(api: httpx.Client) -> None:
    files: list[tuple[str, Any]] = [
        ("model", ("net.onnx", onnx_model())),
        ("model_data", ("net.onnx.data", b"weights")),
    ]
    made = api.post("/models", files=files)
    assert made.status_code == 201, made.text
    assert made.json()["size"] == len(onnx_model()) + 7
    body = {"model_id": made.json()["id"], "dataset": "digits", "spec": json.loads(SPEC)}
    assert api.post("/certify", json=body).status_code == 202


@pytest.mark.parametrize("name", ["a/b.data", "..", "a\\b", "c:d", "x" * 201])
def test_a_name_with_a_folder_is_refused(api: httpx.Client, name: str) -> None:
    problem = post(api, {name: b"x"})
    assert (problem.status_code, problem.json()["code"]) == (422, "invalid_model_data")


def test_doubles_and_data_without_onnx_are_refused(api: httpx.Client) -> None:
    twice = [("model_data", ("n.data", b"1")), ("model_data", ("n.data", b"2"))]
    model = [("model", ("net.onnx", onnx_model()))]
    problem = api.post("/models", files=[*model, *twice])
    assert (problem.status_code, problem.json()["code"]) == (422, "duplicate_field")
    many = [("model_data", (f"{index}.data", b"1")) for index in range(65)]
    problem = api.post("/models", files=[*model, *many])
    assert (problem.status_code, problem.json()["code"]) == (422, "duplicate_field")
    problem = post(api, {"n.data": b"1"}, model=("net.safetensors", safetensors()))
    assert (problem.status_code, problem.json()["code"]) == (422, "unexpected_model_data")
