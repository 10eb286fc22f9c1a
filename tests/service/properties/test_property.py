"""A property in place of a data set: what is accepted, and what is refused by its field."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from service.cli.checks.verify import competition_words
from service.contract.schemas.property_spec import PropertySpec
from service.contract.storage.store import Store
from tests.service.uploads_by_hand import npz, onnx_model

TEXT = b"; a comment\n(declare-const X_0 Real)\n"


def post(api: httpx.Client, **fields: Any) -> httpx.Response:
    form: dict[str, Any] = {
        "model": ("net.onnx", onnx_model()),
        "property": ("p.vnnlib", TEXT),
        **fields,
    }
    return api.post("/certify", files={name: part for name, part in form.items() if part})


def test_a_property_needs_no_spec_and_no_data_set(api: httpx.Client, store: Store) -> None:
    answer = post(api)
    assert answer.status_code == 202, answer.text
    job = api.get(f"/jobs/{answer.json()['id']}").json()
    assert job["dataset_id"] is None
    assert job["spec"] == PropertySpec.model_validate({}).normal()
    assert set(job["spec"]) >= {"method", "soundness", "time_budget_s", "seed"}
    assert not {"norm", "epsilons", "samples", "clip", "attack"} & set(job["spec"])


def test_two_properties_are_two_submissions(api: httpx.Client) -> None:
    key = {"Idempotency-Key": "one"}
    files = {"model": ("net.onnx", onnx_model()), "property": ("p.vnnlib", TEXT)}
    first = api.post("/certify", files=files, headers=key)
    assert api.post("/certify", files=files, headers=key).json()["id"] == first.json()["id"]
    files["property"] = ("p.vnnlib", TEXT + b"; other")
    assert api.post("/certify", files=files, headers=key).status_code == 409


@pytest.mark.parametrize(
    ("fields", "status", "code", "field"),
    [
        ({"dataset": ("d.npz", npz())}, 422, "conflicting_fields", "dataset"),
        ({"dataset_id": (None, "mnist")}, 422, "conflicting_fields", "dataset_id"),
        ({"property": ("p.smt2", TEXT)}, 415, "unsupported_format", "property"),
        ({"property": ("p.vnnlib", b"")}, 422, "empty_file", "property"),
        ({"property": ("p.vnnlib", b"\x1f\x8b\x08")}, 422, "invalid_vnnlib", "property"),
        ({"spec": (None, '{"norm": "linf"}')}, 422, "unknown_field", "spec"),
        ({"spec": (None, '{"epsilons": [0.1]}')}, 422, "unknown_field", "spec"),
        ({"spec": (None, '{"speed": 1}')}, 422, "unknown_field", "spec.speed"),
        ({"spec": (None, '{"method": "magic"}')}, 422, "unknown_method", "spec.method"),
        ({"spec": (None, '{"architecture": "cifar-6c2f"}')}, 422, "unexpected_architecture", None),
    ],
)
def test_a_wrong_form_is_refused(
    api: httpx.Client, fields: dict[str, Any], status: int, code: str, field: str | None
) -> None:
    answer = post(api, **fields)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert field is None or problem["field"] == field


def test_the_words_of_the_competition() -> None:
    def report(verdict: str, *, spent: bool = False, point: Any = None) -> dict[str, Any]:
        return {"property": {"verdict": verdict, "counterexample": point}, "budget_spent": spent}

    assert competition_words(report("holds")) == "unsat"
    assert competition_words(report("unknown", spent=True)) == "timeout"
    assert competition_words(report("unknown")) == "unknown"
    found = competition_words(report("violated", point={"x": [0.5, 1e-45], "y": [-1.0]}))
    assert found.splitlines() == ["sat", "((X_0 0.5)", "(X_1 1e-45)", "(Y_0 -1.0))"]
