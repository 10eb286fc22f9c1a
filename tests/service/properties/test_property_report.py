"""The report of a property in the forms that it has, and in the console."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.console.app import create_app
from service.contract.ledger.ledger import Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.property_spec import PropertySpec
from service.contract.schemas.submissions import DatasetSource
from service.contract.settings import Settings
from service.contract.storage.store import Store
from tests.service.conftest import Make
from workers.jobs.report.property_report import build_property_report
from workers.verification.properties.attack import Counterexample
from workers.verification.properties.results import BoxResult
from workers.verification.properties.text.vnnlib import parse_vnnlib

DIGEST = "sha256:" + "ab" * 32
NAME = "<script>p</script>.vnnlib"
FACTS: dict[str, Any] = {
    "layers": [{"name": "a", "kind": "linear", "shape": [2]}],
    "parameters": 6,
    "input_shape": [2],
    "classes": 2,
    "graph_digest": DIGEST,
    "batch": "any",
    "samples": 2,
    "cases": 3,
    "parity": {"max_difference": 0.0, "budget": 1e-7, "inputs": {"samples": 2}},
    "forward_s": 0.0,
    "warnings": [],
}
POINT = Counterexample(
    np.array([0.1, 1e-45], dtype=np.float32), np.array([-3.5, 2.0], dtype=np.float32)
)
ASKED = parse_vnnlib(
    "(declare-const X_0 Real)(declare-const X_1 Real)"
    "(declare-const Y_0 Real)(declare-const Y_1 Real)"
    "(assert (and (>= X_0 0) (<= X_0 0.25) (= X_1 0)))"
    "(assert (or (and (<= X_0 0.1) (>= Y_0 Y_1)) (and (>= X_0 0.1) (>= Y_0 Y_1) (<= Y_1 2))"
    " (and (>= X_0 0.1) (<= Y_0 -3))))"
)
OPEN = {"method": "branch-and-bound", "best_bound": -0.25, "open_domains": 7}
SEARCHED = {"searched": [OPEN]}
RESULTS = {
    "holds": [BoxResult("holds", "ibp"), BoxResult("holds", "crown")],
    "violated": [BoxResult("holds", "ibp"), BoxResult("violated", "attack", POINT)],
    "unknown": [BoxResult("holds", "crown"), BoxResult("unknown", "undecided", notes=SEARCHED)],
}


@pytest.fixture
def application() -> Callable[[Settings], FastAPI]:
    return create_app


@pytest.mark.parametrize("verdict", RESULTS)
def test_a_property_has_a_page_and_no_table(
    verdict: str, api: httpx.Client, store: Store, ledger: Ledger, accept: Make
) -> None:
    job = accept(
        dataset=DatasetSource(kind="vnnlib", name=NAME, blobs={"file": DIGEST}),
        spec=PropertySpec.model_validate({}).normal(),
    )
    ledger.create(job)
    store.job_dir(job.id)
    report = build_property_report(job, FACTS, RESULTS[verdict], ASKED, wall_s=1.0, digests={})
    store.samples_path(job.id).write_bytes(b"")
    store.write_json(store.report_path(job.id), report)
    conclude(store, ledger, job, "succeeded", samples=2)
    found = api.get(f"/jobs/{job.id}/report").json()
    assert found["property"]["verdict"] == verdict
    assert found["result_digest"] == report["result_digest"]
    point = found["property"]["counterexample"]
    if verdict == "violated":
        assert (point["box"], np.array(point["x"], dtype=np.float32).tolist()) == (
            1,
            POINT.x.tolist(),
        )
    else:
        assert point is None
    left = [{"box": 1, **OPEN}] if verdict == "unknown" else []
    assert found["notes"]["searched"] == left
    for suffix in ("csv", "svg"):
        answer = api.get(f"/jobs/{job.id}/report.{suffix}")
        assert (answer.status_code, answer.json()["code"]) == (406, "no_such_format")
    asked = api.get(f"/jobs/{job.id}/report", headers={"accept": "text/csv"})
    assert (asked.status_code, asked.json()["code"]) == (406, "no_such_format")
    for path in (f"/jobs/{job.id}/report.html", f"/jobs/{job.id}/view", "/", "/compare"):
        page = api.get(path, headers={"accept": "text/html"})
        assert page.status_code == 200, page.text
        assert "<script>p" not in page.text
    html = api.get(f"/jobs/{job.id}/report.html").text
    assert verdict.upper() in html
    assert ("card certified" in html, "card missed" in html) == (
        verdict == "holds",
        verdict == "violated",
    )
    view = api.get(f"/jobs/{job.id}/view", headers={"accept": "text/html"}).text
    for shown in ("X_1 = 0", "0.1 ≤ X_0 ≤ 0.25", "(Y_0 ≥ Y_1 and Y_1 ≤ 2) or Y_0 ≤ -3"):
        assert shown in html
        assert shown in view
    assert "3 unsafe cases" in html
    for term in ("Domain", "Criterion", "Certainty", "Use"):
        assert f"<dt>{term}</dt>" in html
    assert "conforms" not in html
    assert api.get(f"/jobs/{job.id}/samples").json()["items"] == []
