"""Every page: nothing runs in it, nothing frames it, and what an upload says is text."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable

import httpx
from markupsafe import escape

from service.contract.ids import new_job_id
from service.contract.ledger.ledger import Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.problems import InvalidInput
from service.contract.schemas.property_spec import PropertySpec
from service.contract.schemas.submissions import DatasetSource, JobSubmission
from service.contract.storage.store import Store
from tests.service.console.conftest import HOSTILE, PAGE, PNG, Inert, token_in, unsafe


def pages_of(job_id: str) -> list[str]:
    return [
        "/", "/?status=failed&status=succeeded&kind=certify", "/?kind=", "/new", "/train",
        "/system", "/compare", f"/compare?a={job_id}&b={job_id}", f"/jobs/{job_id}/view",
        f"/jobs/{job_id}/samples/view", f"/jobs/{job_id}/samples/view?epsilon=1&verdict=falsified"
        "&label=3&method=crown&sort=radius&down=true", "/nowhere", "/jobs/x/view",
        "/console/jobs/confirm?action=delete&status=failed",
    ]  # fmt: skip


def test_no_page_runs_or_frames_or_asks_for_anything_foreign(
    api: httpx.Client, certified: Callable[..., JobSubmission]
) -> None:
    job = certified(60)
    sizes: dict[str, int] = {}
    for address in pages_of(job.id):
        answer = api.get(address, headers=PAGE)
        expected = 404 if address in ("/nowhere", "/jobs/x/view") else 200
        assert answer.status_code == expected, (address, answer.text[:300])
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        if "<head>" in answer.text:
            found = re.search(r"<meta name=\"htmx-config\" content='([^']*)'>", answer.text)
            assert found is not None, address
            settings = json.loads(found[1])
            assert settings["selfRequestsOnly"] is True
            assert settings["allowEval"] is settings["allowScriptTags"] is False
        parser = Inert()
        parser.feed(answer.text)
        parser.close()
        assert not parser.open, address
        assert not parser.wrong, (address, parser.wrong)
        assert all(load.startswith(("/", "#", "?")) for load in parser.loads), parser.loads
        assert not any(load.startswith("//") for load in parser.loads)
        assert "<script>alert" not in answer.text
        names = set(re.findall(r'(?:src|href)="(/console/[^"]+)"', answer.text))
        sizes |= {name: len(api.get(name).content) for name in names - sizes.keys()}
        weight = len(answer.content) + sum(sizes[name] for name in names)
        assert weight <= 150_000, (address, weight)
    assert escape(HOSTILE) in api.get(f"/jobs/{job.id}/view", headers=PAGE).text


def test_a_job_of_a_property_has_its_pages_too(
    api: httpx.Client, store: Store, ledger: Ledger, make_submission: Callable[..., JobSubmission]
) -> None:
    source = DatasetSource(kind="vnnlib", name=HOSTILE, blobs={"file": "sha256:" + "e" * 64})
    job = make_submission(dataset=source, spec=PropertySpec().normal())
    ledger.create(job)
    assert "property · auto" in api.get("/", headers=PAGE).text
    assert api.get(f"/jobs/{job.id}/view", headers=PAGE).status_code == 200
    store.job_dir(job.id)
    verdict = {"verdict": "violated", "method": "attack", "counterexample": {"x": [0.5]}}
    report = {
        "schema": "certserve/report/1", "job_id": job.id, "dataset": None, "threat": None,
        "radius": None, "curve": None, "clean_accuracy": None, "results": [], "property": verdict,
        "soundness": "sound",
        "model": {"id": "sha256:" + "a" * 64},
    }  # fmt: skip
    store.write_json(store.report_path(job.id), report)
    store.samples_path(job.id).write_text("")
    conclude(store, ledger, job, "succeeded", samples=1)
    page = api.get(f"/jobs/{job.id}/view", headers=PAGE)
    assert "VIOLATED" in page.text
    assert page.status_code == 200
    assert job.id not in api.get("/compare", headers=PAGE).text
    for address in (f"/compare?a={job.id}&b={job.id}", f"/jobs/{job.id}/samples/view"):
        assert api.get(address, headers=PAGE).status_code == 404


def test_what_pages_ask_for_is_there_small_and_kept(api: httpx.Client) -> None:
    page = api.get("/", headers=PAGE).text
    names = re.findall(r'(?:src|href)="(/console/[^"]+)"', page)
    assert len(names) >= 5
    weight = len(page)
    for name in {*names, "/console/vendor/uplot.min.js", "/console/charts.js"}:
        answer = api.get(name)
        assert answer.status_code == 200, name
        assert ("immutable" in answer.headers["cache-control"]) == ("?v=" in name)
        weight += len(answer.content)
    assert weight <= 150_000
    for name in ("../app.py", "..%2fapp.py", "vendor/NOTICE.txt", "templates/base.html", ""):
        assert api.get(f"/console/{name}").status_code == 404


def test_programs_get_json_where_people_get_pages(
    api: httpx.Client, certified: Callable[..., JobSubmission]
) -> None:
    job = certified()
    for accept in ("*/*", "application/json", "text/html;q=0", ""):
        answer = api.get("/", headers={"Accept": accept})
        assert answer.json()["items"][0]["id"] == job.id, accept
        assert api.get("/new", headers={"Accept": accept}).status_code == 406
        refused = api.get("/train", headers={"Accept": accept})
        assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")
        unknown = api.get("/nowhere", headers={"Accept": accept})
        assert unknown.headers["content-type"] == "application/problem+json"
    assert api.get(f"/jobs/{job.id}", headers=PAGE).json()["id"] == job.id


def test_a_picture_is_given_as_it_is_stored(
    api: httpx.Client, certified: Callable[..., JobSubmission]
) -> None:
    job = certified()
    answer = api.get(f"/jobs/{job.id}/samples/3.png")
    assert (answer.content, answer.headers["content-type"]) == (PNG, "image/png")
    assert answer.headers["x-content-type-options"] == "nosniff"
    for missing in ("1.png", "0.png?of=difference", f"{2**61}.png"):
        found = api.get(f"/jobs/{job.id}/samples/{missing}")
        assert (found.status_code, found.json()["code"]) == (404, "no_picture")
    assert api.get(f"/jobs/{job.id}/samples/-1.png").status_code == 422


def test_bulk_actions_meet_the_filter_and_the_count_and_nothing_else(
    api: httpx.Client, store: Store, ledger: Ledger, make_submission: Callable[..., JobSubmission]
) -> None:
    jobs = [make_submission() for _ in range(9)]
    endings = ("failed", "cancelled", "succeeded")
    for place, job in enumerate(jobs):
        ledger.create(job)
        error = InvalidInput("bad") if place % 3 == 0 else None
        conclude(store, ledger, job, endings[place % 3], error=error)  # type: ignore[arg-type]
    page = api.get("/?status=failed&status=cancelled", headers=PAGE)
    assert page.text.count('<tr id="job-') == 6
    assert "Retry 6" in page.text
    assert "Delete 6" in page.text
    headers = unsafe(api, token_in(page))
    wish = {"action": "delete", "filter": {"status": ["failed", "running"]}, "expected_count": 2}
    moved = api.post("/jobs/bulk", json=wish, headers=headers)
    assert (moved.status_code, moved.json()["code"]) == (409, "count_changed")
    assert len(api.get("/jobs").json()["items"]) == 9, "nothing was done"
    done = api.post("/jobs/bulk", json={**wish, "expected_count": 3}, headers=headers)
    assert done.json() == {"action": "delete", "done": 3, "refused": {}}
    left = api.get("/jobs?status=failed&status=cancelled&status=succeeded").json()["items"]
    assert {job["status"] for job in left} == {"cancelled", "succeeded"}
    retried = {"action": "retry", "filter": {"kind": "certify"}, "expected_count": 3}
    assert api.post("/jobs/bulk", json=retried, headers=headers).json()["done"] == 3
    cancelled = {"action": "cancel", "filter": {}, "expected_count": 3}
    assert api.post("/jobs/bulk", json=cancelled, headers=headers).json()["done"] == 3
    none = {"action": "cancel", "filter": {"kind": "train"}, "expected_count": 0}
    assert api.post("/jobs/bulk", json=none, headers=headers).json()["done"] == 0
    for bad in ({}, {**none, "action": "burn"}, {**none, "filter": {"status": ["odd"]}}):
        assert api.post("/jobs/bulk", json=bad, headers=headers).status_code == 422


def test_pages_are_quick_at_a_thousand_jobs_and_ten_thousand_samples(
    api: httpx.Client,
    ledger: Ledger,
    make_submission: Callable[..., JobSubmission],
    certified: Callable[..., JobSubmission],
) -> None:
    job = certified(10_000)
    ledger.create_all([make_submission(id=new_job_id()) for _ in range(1000)])
    for address in ("/", "/?status=queued&status=failed&kind=certify", f"/jobs/{job.id}/view",
                    f"/jobs/{job.id}/samples/view?sort=radius&down=true&part=100"):  # fmt: skip
        api.get(address, headers=PAGE)
        spent = []
        for _ in range(5):
            began = time.process_time()
            assert api.get(address, headers=PAGE).status_code == 200
            spent.append(time.process_time() - began)
        print(f"{address[:40]}: {1000 * statistics.median(spent):.1f} ms of CPU")
        # Time of the processor, server and client together: waiting for a busy machine is not it.
        assert min(spent) < 0.1
