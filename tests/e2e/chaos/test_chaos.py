"""API, workers and Redis are killed at random; every job ends in the report of a calm run, once.

CERTSERVE_CHAOS_S seconds (default 8) with a job for every 4 of them; CERTSERVE_CHAOS_SEED. From
a minute on four workers, otherwise two: most of the time goes into starting again what was killed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import Client
from tests.e2e.chaos.customer import Customer, order
from tests.e2e.chaos.rig import Monkey, Rig

SECONDS = float(os.environ.get("CERTSERVE_CHAOS_S", "8"))
SEED = int(os.environ.get("CERTSERVE_CHAOS_SEED", "0"))
LONG = SECONDS >= 60
JOBS = max(4, round(SECONDS / 4))
WORKERS = 4 if LONG else 2
#: After the last kill: leases run out, the rest is computed.
CALM_DOWN_S = 60 + 15 * JOBS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * SECONDS + 2 * CALM_DOWN_S + 120)]


def test_every_job_ends_once_in_the_report_of_a_calm_run(
    uploads: tuple[Path, Path], tmp_path: Path
) -> None:
    with Rig(tmp_path / "data", WORKERS) as rig:
        customer = Customer(rig.url, uploads, JOBS, 0.7 * SECONDS)
        monkey = Monkey(rig, SEED, customer.posting)
        customer.start()
        began = time.monotonic()
        monkey.rage(SECONDS)
        customer.join()
        with Client(rig.url) as client:
            reports = [_report(client, job) for job in customer.ids]
        listed = _listed(rig.url)
        took = time.monotonic() - began
        print(
            f"\n{JOBS} jobs in {took:.0f} s, {SECONDS:.0f} of them chaos (seed {SEED}): killed "
            f"{dict(sorted(monkey.killed.items()))}, {customer.unanswered} POSTs without an answer"
        )
        # Nothing lost, nothing doubled: one job per order, whatever was asked how often.
        assert all(len(set(ids)) == 1 for ids in customer.answers.values()), customer.answers
        assert Counter(listed) == Counter(customer.ids)
        assert _journalled(rig) == Counter(customer.ids)
        assert [report["result_digest"] for report in reports] == _calm_digests(rig, uploads)
        for job, report in zip(customer.ids, reports, strict=True):
            _check_once(rig, job, report)
        assert monkey.killed.keys() == {"worker", "horse", "api", "redis"} or not LONG


def _calm_digests(rig: Rig, uploads: tuple[Path, Path]) -> list[str]:
    """``result_digest`` of every order now that nobody kills anything, each computed anew."""
    shutil.rmtree(rig.data_dir / "cache")
    (rig.data_dir / "cache").mkdir()
    with Client(rig.url) as client:
        jobs = [client.certify(*uploads, order(number))["id"] for number in range(JOBS)]
        return [_report(client, job)["result_digest"] for job in jobs]


def _report(client: Client, job: str) -> dict[str, Any]:
    client.wait(job, timeout_s=CALM_DOWN_S)
    report: dict[str, Any] = json.loads(client.report(job))
    return report


def _listed(url: str) -> list[str]:
    """The ids of GET /jobs, all pages."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": "7"} if cursor is None else {"limit": "7", "cursor": cursor}
        page = httpx.get(f"{url}/jobs", params=query, timeout=60).json()
        found += [job["id"] for job in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def _journalled(rig: Rig) -> Counter[str]:
    lines = [
        line
        for path in (rig.data_dir / "journal").glob("*.jsonl")
        for line in path.read_text().splitlines(keepends=True)
    ]
    return Counter(json.loads(line)["job"]["id"] for line in lines if line.endswith("\n"))


def _check_once(rig: Rig, job: str, report: dict[str, Any]) -> None:
    """One outcome, one report with every sample once, one end told to those who listen."""
    folder = rig.data_dir / "jobs" / job
    assert json.loads((folder / "report.signed.json").read_text()) == report
    assert json.loads((folder / "report.json").read_text()) == {**report, "signature": None}
    assert json.loads((folder / "outcome.json").read_text())["status"] == "succeeded"
    assert not list(folder.glob("outcome-*")) + list(folder.glob("attempt-*"))
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(report["dataset"]["samples"]))
    redis = rig.redis()
    told = [event for _, event in redis.xrange(f"certserve:job:{job}:events")]
    redis.close()
    ends = [event["status"] for event in told if event["type"] == "status"]
    assert ends.count("succeeded") == 1, ends
    assert ends[-1] == "succeeded"
