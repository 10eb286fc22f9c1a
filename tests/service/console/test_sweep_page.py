"""A sweep's page, chart and reports: what a hyperparameter and its values are called is text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
from markupsafe import escape

from service.contract.ledger.ledger import Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.submissions import DatasetSource, JobSubmission, ModelSource, Spec
from service.contract.storage.store import Store
from service.contract.sweeps import runs_of
from service.reports.plain_text import plain
from tests.service.console.conftest import HOSTILE, PAGE, Inert, report_of

#: Markup, quotes, and marks that turn the text behind them around.
NAMES = (HOSTILE, "a\u202eFOORP ON\u202c\u2066'\"", "]]></title><script>alert(1)</script>")
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.fixture
def swept(
    store: Store, ledger: Ledger, make_submission: Callable[..., JobSubmission]
) -> Callable[[str], JobSubmission]:
    """Makes a sweep that has ended: a hyperparameter of this name, whose values have it too."""

    def make(name: str) -> JobSubmission:
        plan: dict[str, Any] = {
            "method": "ibp", "recipe": "fast", "norm": "l2", "epsilon": "1/2", "seed": 3,
            "architecture": {"name": name},
            "hyperparameters": {
                "epochs": 2, "batch_size": 8, "learning_rate": 0.1, "optimizer": name,
            },
            "sweep": {"name": name, "values": [name, 0.5, f"{name} that ends badly"]},
        }  # fmt: skip
        data = DatasetSource(kind="npz", name=name, id="sha256:" + "b" * 64)
        spec = Spec.model_validate({"norm": "l2", "epsilons": ["36/255", "1/2"]}).normal()
        job = make_submission(
            kind="train", training=plan, training_dataset=data, model=None, dataset=data, spec=spec
        )
        model = ModelSource(digest="sha256:" + "a" * 64, format="onnx", name=name, size=3)
        *good, bad = runs_of(job)
        for place, run in enumerate(good):
            store.job_dir(run.id)
            store.training_dir(run.id).mkdir()
            found = {**model.model_dump(mode="json"), "digest": f"sha256:{place}" + "a" * 63}
            store.write_json(store.training_dir(run.id) / "trained.json", {"model": found})
            report = report_of(run.model_copy(update={"model": model}), 2)
            report["results"][1]["certified_accuracy"] = 0.1 + place / 10
            report["clean_accuracy"] = 0.9 - place / 10
            store.write_json(store.report_path(run.id), report)
            store.samples_path(run.id).write_text("")
        store.job_dir(bad.id)
        problem = {"code": "training_diverged", "detail": name, "title": "t", "status": 422}
        store.write_json(store.failure_path(bad.id), {"type": "about:blank", **problem})
        conclude(store, ledger, job, "succeeded", samples=4)
        return job

    return make


@pytest.mark.parametrize("name", NAMES)
def test_names_of_a_sweep_are_text_on_its_page_in_its_chart_and_in_its_reports(
    name: str, api: httpx.Client, swept: Callable[[str], JobSubmission]
) -> None:
    job = swept(name)
    for address in (
        "/",
        f"/jobs/{job.id}/view",
        f"/jobs/{job.id}.0/view",
        f"/jobs/{job.id}.2/view",
        "/compare",
        f"/compare?a={job.id}.0&b={job.id}.1",
    ):
        answer = api.get(address, headers=PAGE)
        assert answer.status_code == 200, (address, answer.text[:300])
        parser = Inert()
        parser.feed(answer.text)
        assert not parser.wrong, (address, parser.wrong)
        assert not parser.open
        assert not set(TURNING) & set(answer.text), address
        assert "<script>alert" not in answer.text
        assert str(escape(plain(name))) in answer.text, address
    chart = api.get(f"/jobs/{job.id}/pareto.svg")
    assert chart.headers["content-security-policy"].endswith("sandbox")
    root = ElementTree.fromstring(chart.content)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert not tags & {"script", "foreignObject", "image", "a", "use", "animate", "set", "img"}
    told = "".join(root.itertext())
    assert f"{plain(name)} = {plain(name)}" in told
    assert not set(TURNING) & set(told)
    assert api.get(f"/jobs/{job.id}/pareto.json").json()["points"][0]["value"] == name
    for address in (f"/jobs/{job.id}.0/report.html", f"/jobs/{job.id}/pareto.html"):
        report = api.get(address)
        assert report.status_code == 200
        assert report.headers["content-security-policy"].endswith("sandbox")
        assert "<script" not in report.text
        assert not set(TURNING) & set(report.text)
        assert str(escape(plain(name))) in report.text


def test_the_report_of_a_sweep_has_all_of_its_models(
    api: httpx.Client, swept: Callable[[str], JobSubmission]
) -> None:
    job = swept("alpha")
    shown = api.get(f"/jobs/{job.id}/view", headers=PAGE).text
    assert f'href="/jobs/{job.id}/pareto.html"' in shown
    report = api.get(f"/jobs/{job.id}/pareto", headers=PAGE)
    assert report.headers["content-type"].startswith("text/html")
    for told in (
        "alpha = 0.5", f"{job.id}.0", f"{job.id}.1", f"{job.id}.2", "training_diverged",
        "sha256:0" + "a" * 63, "sha256:1" + "a" * 63, "90.0 %", "80.0 %", "10.0 %", "20.0 %",
        "certified at ε = 0.5", "0.0 – 40.0 %", "60.0 %", "seed",
    ):  # fmt: skip
        assert told in report.text, told
    other = api.get(f"/jobs/{job.id}/pareto.html", params={"epsilon": "36/255"}).text
    assert "certified at ε = 36/255" in other
    assert api.get(f"/jobs/{job.id}/pareto.html", params={"epsilon": "7"}).status_code == 422


def test_what_can_be_compared_of_a_sweep_are_its_models(
    api: httpx.Client, swept: Callable[[str], JobSubmission]
) -> None:
    job = swept("alpha")
    page = api.get("/compare", headers=PAGE).text
    offered = {place for place in ("", ".0", ".1", ".2") if f'value="{job.id}{place}"' in page}
    assert offered == {".0", ".1"}
    assert "alpha 0.5" in page
