"""The console on the fixtures' Redis, with jobs that have ended as a worker would end them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.console.app import create_app
from service.contract.ledger.ledger import Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.submissions import DatasetSource, JobSubmission, ModelSource
from service.contract.settings import Settings
from service.contract.storage.pictures import THUMBNAILS, pack_pictures
from service.contract.storage.store import Store

PAGE = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
#: Names of files and classes that try to break out of a page.
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}'.onnx"
PNG = b"\x89PNG\r\n\x1a\n" + b"not decoded by anybody here"

_VOID = {"meta", "link", "br", "hr", "img", "input"}


class Inert(HTMLParser):
    """Collects what a page would run or load, and fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)
        values = dict(attrs)
        if tag == "style" or (tag == "script" and not values.get("src")):
            self.wrong.append(tag)
        for name, value in attrs:
            if name == "style" or name.startswith(("on", "hx-on")):
                self.wrong.append(f"{tag} {name}")
            if name in ("src", "href", "action", "hx-get", "sse-connect") and value:
                self.loads.append(value)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.wrong.append(data.strip())

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


@pytest.fixture
def application() -> Callable[[Settings], FastAPI]:
    return create_app


def token_in(page: httpx.Response) -> str:
    """The token that the page's forms bring."""
    found = re.search(r'<meta name="csrf-token" content="([0-9a-f]{64})">', page.text)
    assert found is not None, page.text[:500]
    return found[1]


def browser(base: str) -> httpx.Client:
    """A client that keeps cookies and asks for pages, as a browser does."""
    return httpx.Client(base_url=base, headers=PAGE, timeout=60)


def log_in(client: httpx.Client, key: str, **fields: str) -> httpx.Response:
    """Send the form of /login."""
    token = token_in(client.get("/login"))
    form = {"key": key, "csrf_token": token, "next": "/system", **fields}
    return client.post("/login", data=form, headers={"Origin": str(client.base_url).rstrip("/")})


def unsafe(client: httpx.Client, token: str) -> dict[str, str]:
    """Headers of an unsafe request that one of our pages makes."""
    return {
        "Origin": str(client.base_url).rstrip("/"),
        "X-CSRF-Token": token,
        "Accept": "application/json",
    }


def sample_rows(count: int, epsilons: int = 2) -> list[dict[str, Any]]:
    """Rows as ``samples.jsonl`` has them."""
    return [
        {
            "index": k, "label": k % 10, "prediction": k % 10 if k % 7 else (k + 1) % 10,
            "margin": (k * 7919 % 1000) / 100, "radius": (k * 104729 % 2000) / 1000,
            "unbounded": False, "method": ("lipschitz", "crown", "undecided")[k % 3],
            "certified": [k % 7 != 0 and k % 3 != 2, False][:epsilons],
            "falsified": [False, k % 7 != 0 and k % 5 == 0][:epsilons],
        }
        for k in range(count)
    ]  # fmt: skip


def report_of(job: JobSubmission, count: int) -> dict[str, Any]:
    """A report with the figures that pages show."""
    assert job.model is not None
    assert job.dataset is not None
    return {
        "schema": "certserve/report/1", "job_id": job.id,
        "model": {
            "id": job.model.digest, "format": "onnx", "name": job.model.name, "parameters": 15,
            "layers": [{"name": HOSTILE, "kind": "linear", "shape": [3]}],
            "input_shape": [1, 8, 8], "classes": 10, "batch": "any", "dropped_output": None,
        },
        "dataset": {
            "id": job.dataset.id, "name": job.dataset.name, "samples": count, "total": count + 1,
            "split": None, "classes": {HOSTILE: 3},
        },
        "threat": {
            "norm": "l2", "epsilons": [36 / 255, 0.5], "epsilons_exact": ["12/85", "1/2"],
            "clip": True, "normalization": None,
        },
        "graph_digest": "sha256:" + "c" * 64, "spec": job.spec, "method": "auto",
        "soundness": "sound", "statement": "It holds.\n\nNothing else.",
        "failure_probability": 0.0, "clean_accuracy": 0.9,
        "results": [
            {
                "epsilon": 36 / 255, "epsilon_exact": "12/85", "certified_accuracy": 0.6,
                "attack_accuracy": 0.8, "certified": 6, "falsified": 1, "undecided": 2,
                "interval_95": [0.3, 0.8],
            },
            {
                "epsilon": 0.5, "epsilon_exact": "1/2", "certified_accuracy": 0.1,
                "attack_accuracy": 0.5, "certified": 1, "falsified": 4, "undecided": 4,
                "interval_95": [0.0, 0.4],
            },
        ],
        "radius": {
            "mean": 0.4, "median": 0.4, "quantiles": {"5%": 0.1, "50%": 0.4},
            "average_certified_radius": 0.4, "unbounded": 0, "cap": 8.0,
        },
        "curve": {
            "epsilon": [0.0, 36 / 255, 0.3, 0.5],
            "certified_accuracy": [0.9, 0.6, 0.2, 0.1],
        },
        "by_method": {"lipschitz": 6, "crown": 3, "undecided": 1},
        "parity": {"max_difference": 1e-6, "budget": 1e-4},
        "budget_spent": False, "warnings": [HOSTILE],
        "criterion": {"epsilon": "36/255", "certified_accuracy": 0.5, "met": True},
        "timing": {
            "wall_s": 3.0, "forward_s": 0.1, "bound_s": 2.0, "attack_s": 0.5, "samples_per_s": 3.0,
        },
        "device": "cpu", "versions": {"python": "3.11"}, "created_at": job.created_at,
        "result_digest": "sha256:" + "d" * 64,
    }  # fmt: skip


@pytest.fixture
def certified(
    store: Store, ledger: Ledger, make_submission: Callable[..., JobSubmission]
) -> Callable[..., JobSubmission]:
    """Makes a certification that has ended, with hostile names, rows and pictures."""

    def make(count: int = 30, **changes: Any) -> JobSubmission:
        model = ModelSource(digest="sha256:" + "a" * 64, format="onnx", name=HOSTILE, size=3)
        data = DatasetSource(kind="npz", name=HOSTILE, id="sha256:" + "b" * 64)
        job = make_submission(model=model, dataset=data, **changes)
        folder = store.job_dir(job.id)
        lines = "".join(json.dumps(row) + "\n" for row in sample_rows(count))
        (folder / "samples.jsonl").write_text(lines)
        store.write_json(store.report_path(job.id), report_of(job, count))
        (folder / "prepared").mkdir()
        (folder / "prepared" / THUMBNAILS).write_bytes(pack_pictures([(0, PNG), (3, PNG)]))
        conclude(store, ledger, job, "succeeded", samples=count)
        return job

    return make
