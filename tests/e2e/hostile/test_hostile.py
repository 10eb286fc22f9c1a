"""A corpus of hostile requests over real HTTP: each ends in a stated refusal, none in harm."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import Client
from tests.e2e.hostile.bodies import bodies
from tests.e2e.hostile.case import SPEC, Case
from tests.e2e.hostile.graphs import graphs, overflowing
from tests.e2e.hostile.samples import samples
from tests.e2e.hostile.weights import MARK, weights
from tests.e2e.live_service import JOB_S, LiveService
from tests.e2e.memory import MemoryWatch, peak_bytes
from tests.extent import ALL

GiB = 2**30
INSPECTION_BYTES = 4 * GiB
CASES = [case for case in (*bodies(), *samples(), *weights(), *graphs()) if ALL or not case.deep]


@dataclass
class Siege:
    """What became of the corpus: the last word on every case, and what it cost."""

    service: LiveService
    answers: dict[str, tuple[str, Any]] = field(default_factory=dict)
    api_bytes: int = 0
    worker_bytes: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory, uploads: tuple[Path, Path]) -> Iterator[Siege]:
    """One service that all cases are sent to, one after the other."""
    service = LiveService(
        tmp_path_factory.mktemp("siege") / "data",
        CERTSERVE_INSPECTION_MEMORY_BYTES=str(INSPECTION_BYTES),
        # Reading any of them takes seconds: what takes longer hangs, on a busy machine too.
        CERTSERVE_INSPECTION_TIMEOUT_S="120",
        CERTSERVE_MAX_INFLATED_BYTES=str(GiB // 4),
        CERTSERVE_MAX_ARCHIVE_MEMBERS="300",
    )
    service.start(workers=2)
    result = Siege(service)
    model, dataset = (path.read_bytes() for path in uploads)
    api, workers = service.child("api").pid, [service.child(f"worker-{n}").pid for n in range(2)]
    try:
        with (
            MemoryWatch(*workers) as watch,
            httpx.Client(base_url=service.url, timeout=JOB_S) as http,
        ):
            for case in CASES:
                body = case.request(model, dataset)
                headers = {"content-type": case.content_type}
                try:
                    answer = http.post("/certify", content=body, headers=headers)
                except httpx.TransportError as error:
                    result.answers[case.name] = (repr(error), {})
                else:
                    result.answers[case.name] = (_kind(answer), answer.json())
            for name, (kind, job) in list(result.answers.items()):
                if kind == "job":
                    result.answers[name] = ("job", _ended(http, job["id"]))
        result.api_bytes = peak_bytes(api)
        result.worker_bytes = watch.peaks
        yield result
    finally:
        service.stop()


def _kind(answer: httpx.Response) -> str:
    media_type = answer.headers.get("content-type", "")
    return f"{answer.status_code} {media_type}" if answer.status_code != 202 else "job"


def _ended(http: httpx.Client, job_id: str) -> Any:
    deadline = time.monotonic() + 600
    for attempt in itertools.count():
        job = http.get(f"/jobs/{job_id}", params={"wait": 20}).json()
        if job["status"] not in ("queued", "running") or time.monotonic() > deadline:
            return job
        assert attempt < 100
    raise AssertionError


def test_the_corpus_is_as_large_as_it_should_be() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused(siege: Siege, case: Case) -> None:
    kind, answer = siege.answers[case.name]
    if kind == "job":
        assert answer["status"] == "failed", answer
        problem = answer["error"]
        assert 400 <= problem["status"] < 500, problem
    else:
        problem = answer
        assert kind == f"{problem.get('status')} application/problem+json"
        assert 400 <= problem["status"] < 500, problem
    assert problem["code"] in case.codes, problem
    assert problem["detail"]
    assert len(problem["detail"]) + len(problem.get("hint", "")) < 3000


def test_logits_that_overflow_are_certified_for_nothing(
    siege: Siege, uploads: tuple[Path, Path], tmp_path: Path
) -> None:
    model = tmp_path / "overflowing.onnx"
    model.write_bytes(overflowing())
    with Client(siege.service.url) as client:
        job = client.wait(client.certify(model, uploads[1], SPEC)["id"], timeout_s=JOB_S)
        report = json.loads(client.report(job["id"]))
    assert [row["certified"] for row in report["results"]] == [0]


def test_memory_stays_within_limits(siege: Siege) -> None:
    assert 0 < siege.api_bytes < 300 * 10**6
    assert "inspection" in siege.worker_bytes
    for name, peak in siege.worker_bytes.items():
        assert peak < INSPECTION_BYTES / 2, name


def test_nothing_ran_and_nothing_is_left(siege: Siege) -> None:
    data = siege.service.data_dir
    assert not [path for path in data.rglob("*") if path.name == MARK]
    assert not (Path.cwd() / MARK).exists()
    assert not list((data / "tmp").iterdir())
    assert not list((data / "jobs").glob("*/.inspect-*"))


def test_the_service_still_certifies(siege: Siege, uploads: tuple[Path, Path]) -> None:
    with Client(siege.service.url) as client:
        assert client.ready()
        job = client.wait(client.certify(*uploads, SPEC)["id"], timeout_s=JOB_S)
        assert job["status"] == "succeeded"
        assert b"certified_accuracy" in client.report(job["id"])
