"""Results are served in every form."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from service.contract.ledger.ledger import Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.problems import InvalidInput
from service.contract.schemas.report import result_digest
from service.contract.storage.store import Store
from service.reports.signing import Finding, parse_report, verify
from tests.service.conftest import Make, finish


@pytest.mark.parametrize(
    ("accept_header", "media_type"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/json;q=0.5, text/csv", "text/csv"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("image/*", "image/svg+xml"),
        ("text/*", "text/html"),
        ("application/pdf", None),
        ("application/json;q=0", None),
        ("text/html;q=broken", None),
    ],
)
def test_a_report_comes_in_the_form_asked_for(accept_header: str, media_type: str | None) -> None:
    from service.api.routes.reports import _MEDIA_TYPES, negotiate
    from service.contract.schemas.problems import NotAcceptable

    if media_type is None:
        with pytest.raises(NotAcceptable):
            negotiate(accept_header)
    else:
        assert negotiate(accept_header) == _MEDIA_TYPES[media_type]


def test_the_json_report_is_served_as_it_was_signed(
    api: httpx.Client, store: Store, ledger: Ledger, accept: Make
) -> None:
    job = accept()
    ledger.create(job)
    early = api.get(f"/jobs/{job.id}/report")
    assert (early.status_code, early.json()["code"]) == (409, "not_finished")
    finish(store, ledger, job)
    for path in ("report", "report.json"):
        answer = api.get(f"/jobs/{job.id}/{path}")
        assert answer.headers["content-type"] == "application/json"
        assert answer.content == store.signed_report_path(job.id).read_bytes()
    report = parse_report(answer.content)
    told = api.get("/keys/signing").json()
    assert verify(report, {told["public_key"]}) is Finding.VALID
    del report["signature"]
    assert report == store.read_json(store.report_path(job.id))
    assert api.get(f"/jobs/{job.id}/report.pdf").status_code == 422
    pdf = api.get(f"/jobs/{job.id}/report", headers={"accept": "application/pdf"})
    assert (pdf.status_code, pdf.json()["code"]) == (406, "not_acceptable")


def test_a_certificate_is_served_where_there_is_one(
    api: httpx.Client, store: Store, ledger: Ledger, accept: Make
) -> None:
    job = accept()
    ledger.create(job)
    path = f"/jobs/{job.id}/certificate"
    assert api.get(path).json()["code"] == "not_finished"
    finish(store, ledger, job)
    answer = api.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "no_certificate")
    assert api.get(f"/jobs/{job.id}").json()["links"]["certificate"] is None
    store.certificate_path(job.id).write_bytes(b"proofs")
    answer = api.get(api.get(f"/jobs/{job.id}").json()["links"]["certificate"])
    assert (answer.status_code, answer.content) == (200, b"proofs")
    assert f"{job.id}.certificate.safetensors" in answer.headers["content-disposition"]


def test_a_failed_job_says_why_there_is_no_report(
    api: httpx.Client, store: Store, ledger: Ledger, accept: Make
) -> None:
    job = accept()
    problem = InvalidInput("a Loop", code="unsupported_operator", field="model")
    conclude(store, ledger, job, "failed", error=problem)
    shown = api.get(f"/jobs/{job.id}").json()
    assert shown["error"] == problem.to_dict()
    answer = api.get(f"/jobs/{job.id}/report").json()
    assert answer["code"] == "no_report"
    assert "a Loop" in answer["detail"]


def test_sample_rows_come_in_pages(
    api: httpx.Client, store: Store, ledger: Ledger, accept: Make
) -> None:
    job = accept()
    finish(store, ledger, job, samples=25)
    rows: list[dict[str, Any]] = []
    query: dict[str, Any] = {"limit": 10}
    while True:
        page = api.get(f"/jobs/{job.id}/samples", params=query).json()
        rows += page["items"]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert [row["index"] for row in rows] == list(range(25))
    for cursor in ("1", "99999999", "-1", "x"):
        assert api.get(f"/jobs/{job.id}/samples?cursor={cursor}").status_code == 422


def test_counterexamples_are_served_where_there_are_any(
    api: httpx.Client, store: Store, ledger: Ledger, accept: Make
) -> None:
    job = accept()
    finish(store, ledger, job)
    missing = api.get(f"/jobs/{job.id}/counterexamples.npz")
    assert (missing.status_code, missing.json()["code"]) == (404, "no_counterexamples")
    np.savez(store.counterexamples_path(job.id), x=np.ones(3))
    found = api.get(f"/jobs/{job.id}/counterexamples.npz")
    assert found.content == store.counterexamples_path(job.id).read_bytes()


def test_the_result_digest_ignores_when_and_where_and_nothing_else() -> None:
    report = {"job_id": "a", "timing": {"wall_s": 1}, "method": "auto", "results": [{"n": 1}]}
    same = {"method": "auto", "results": [{"n": 1}], "job_id": "b", "device": "cuda"}
    assert result_digest(report) == result_digest({**same, "created_at": "x", "signature": {}})
    assert result_digest(report) != result_digest({**report, "results": [{"n": 2}]})
    with pytest.raises(ValueError, match="JSON"):
        result_digest({"x": float("nan")})
