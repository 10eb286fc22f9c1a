"""What a sweep shows of its runs: models, reports, and how they compare; they are only read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.console.app import create_app
from service.contract.ledger.ledger import Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.problems import InvalidInput
from service.contract.schemas.report import (
    CascadeReport,
    CascadeResult,
    CascadeStage,
    CriterionVerdict,
    ReportDataset,
)
from service.contract.settings import Settings
from service.contract.storage.store import Store
from service.contract.sweeps import runs_of
from tests.service.api.trainings import training


@pytest.fixture
def application() -> Callable[[Settings], FastAPI]:
    """With the pages."""
    return create_app


#: Clean and certified accuracy of the runs that end well: the second is worse in both.
SHARES = [(0.9, 0.5), (0.8, 0.4), (0.7, 0.6)]


def left_by(store: Store, run: str, clean: float, certified: float) -> str:
    """Leave a model and a report, as a worker does; the model's id."""
    store.job_dir(run)
    with store.writer(limit=99) as writer:
        writer.write(run.encode())
        model = writer.publish().digest
    store.training_dir(run).mkdir()
    found = {"model": {"digest": model, "format": "onnx", "name": "n", "size": 7}}
    store.create_json(store.training_dir(run) / "trained.json", found)
    counts = {"certified": 1, "falsified": 0, "undecided": 2}
    shares = {"certified_accuracy": certified, "attack_accuracy": certified}
    report: dict[str, Any] = {
        "schema": "certserve/report/1",
        "job_id": run,
        "soundness": "sound",
        "clean_accuracy": clean,
        "dataset": {"id": None, "name": "digits", "samples": 3},
        "results": [{"epsilon": 0.5, "epsilon_exact": "1/2", **shares, **counts}],
    }
    store.create_json(store.report_path(run), report)
    store.samples_path(run).write_text("")
    return model


def test_a_sweep_shows_its_models_and_compares_them(
    api: httpx.Client, store: Store, ledger: Ledger
) -> None:
    values = [0.1, 0.2, 0.3, 0.4]
    job = api.post("/train", json=training(sweep={"least_share": values})).json()["id"]
    shown = api.get(f"/jobs/{job}").json()
    assert [(m["value"], m["model_id"]) for m in shown["models"]] == [(v, None) for v in values]
    early = api.get(f"/jobs/{job}/pareto")
    assert (early.status_code, early.json()["code"]) == (409, "not_finished")

    state = ledger.get(job)
    assert state is not None
    *good, bad = runs_of(state.submission)
    models = [left_by(store, r.id, *s) for r, s in zip(good, SHARES, strict=True)]
    problem = InvalidInput("it is not finite", code="training_diverged")
    store.job_dir(bad.id)
    store.create_json(store.failure_path(bad.id), problem.to_dict())
    conclude(store, ledger, state.submission, "succeeded", samples=9)

    shown = api.get(f"/jobs/{job}").json()
    assert (shown["model_id"], shown["links"]["report"]) == (None, None)
    assert [m["model_id"] for m in shown["models"]] == [*models, None]
    assert shown["models"][3]["error"]["code"] == "training_diverged"
    assert shown["models"][3]["links"]["report"] is None
    pareto = api.get(shown["links"]["pareto"]).json()
    assert (pareto["parameter"], pareto["epsilon_exact"]) == ("least_share", "1/2")
    assert [point["on_front"] for point in pareto["points"]] == [True, False, True]
    for point, (clean, certified) in zip(pareto["points"], SHARES, strict=True):
        assert (point["clean_accuracy"], point["certified_accuracy"]) == (clean, certified)
        assert api.get(point["links"]["report"]).json()["signature"]
        run = api.get(point["links"]["self"]).json()
        assert (run["status"], run["model_id"]) == ("succeeded", point["model_id"])
        assert run["plan"]["hyperparameters"]["least_share"] == point["value"]
        assert run["links"]["events"] == f"/jobs/{job}/events"
    assert api.get(f"/jobs/{bad.id}").json()["status"] == "failed"
    chart = api.get(f"/jobs/{job}/pareto", headers={"Accept": "image/svg+xml"})
    assert chart.headers["content-type"] == "image/svg+xml"
    assert "least_share = 0.3" in chart.text
    assert api.get(f"/jobs/{job}/pareto.json", params={"epsilon": "0.5"}).json() == pareto
    for path, status, code in (
        (f"/jobs/{job}/pareto?epsilon=1", 422, "invalid_epsilon"),
        (f"/jobs/{job}/report", 404, "no_report"),
        (f"/jobs/{job}.0/pareto", 404, "no_sweep"),
        (f"/jobs/{job}.4", 404, "unknown_job"),
        (f"/jobs/{job}.01", 404, "unknown_job"),
        (f"/jobs/{job}.0/events", 409, "part_of_sweep"),
    ):
        refused = api.get(path)
        assert (refused.status_code, refused.json()["code"]) == (status, code), path
    for verb, path in (("POST", "/cancel"), ("POST", "/retry"), ("DELETE", "")):
        refused = api.request(verb, f"/jobs/{job}.0{path}")
        assert (refused.status_code, refused.json()["code"]) == (409, "part_of_sweep"), path

    again = api.post("/train", json=training(sweep={"least_share": values}))
    assert again.json()["id"] == job
    assert again.headers["Certserve-Submission"] == "reused"
    assert api.delete(f"/jobs/{job}").status_code == 204
    assert not (store.data_dir / "jobs" / job).exists()
    assert api.get(f"/jobs/{job}.0/report").status_code == 404


def test_a_cascade_shows_its_stages_and_what_they_come_to(
    api: httpx.Client, store: Store, ledger: Ledger
) -> None:
    recipe = {"options": {"cascade_stages": 3}}
    wish = training(method="cap", recipe=recipe, certify={"norm": "linf", "epsilons": ["1/2"]})
    job = api.post("/train", json=wish).json()["id"]
    shown = api.get(f"/jobs/{job}").json()
    assert [m["value"] for m in shown["models"]] == [1, 2, 3]
    assert (shown["links"]["cascade"], shown["links"]["pareto"]) == (None, None)
    assert api.get(f"/jobs/{job}/cascade").json()["code"] == "not_finished"

    state = ledger.get(job)
    assert state is not None
    *good, missing = runs_of(state.submission)
    plans = [api.get(f"/jobs/{run.id}").json()["plan"] for run in (*good, missing)]
    assert [(plan["stage"], plan["seed"]) for plan in plans] == [(1, 0), (2, 1), (3, 2)]
    assert {plan["hyperparameters"]["options"]["cascade_stages"] for plan in plans} == {1}
    assert api.get(f"/jobs/{good[0].id}").json()["models"] is None
    models = [left_by(store, r.id, *s) for r, s in zip(good, SHARES[:2], strict=True)]
    problem = InvalidInput("the cascade ended", code="cascade_ended")
    store.job_dir(missing.id)
    store.create_json(store.failure_path(missing.id), problem.to_dict())
    row = {
        "epsilon": 0.5,
        "epsilon_exact": "1/2",
        "answered": [2, 1],
        "uncertified": 1,
        "clean_accuracy": 0.75,
        "protocol_accuracy": 0.5,
        "protocol": 2,
        "every_stage": 0,
        "certified_accuracy": 0.25,
        "certified": 1,
        "answered_by": [1, 2, 1, 0],
    }
    report = CascadeReport(
        job_id=job,
        statement="ESTIMATE: of the protocol.\n\nPROVED: of the function.",
        norm="linf",
        clip=True,
        method="auto",
        failure_probability=0.0,
        dataset=ReportDataset(id=None, name="digits", samples=4),
        samples=4,
        stages=[
            CascadeStage(stage=place + 1, model_id=model, trained_on=100 - 50 * place)
            for place, model in enumerate(models)
        ],
        results=[CascadeResult(**row)],
        index=[0, 1, 2, 3],
        criterion=CriterionVerdict(epsilon="1/2", certified_accuracy=0.5, met=False),  # type: ignore[arg-type]
        warnings=["the cascade ended"],
        versions={},
        created_at="2026-01-31T12:00:00.000000Z",
    )
    store.create_json(store.report_path(job), report.model_dump(mode="json", by_alias=True))
    conclude(store, ledger, state.submission, "succeeded", samples=8)

    shown = api.get(f"/jobs/{job}").json()
    assert (shown["model_id"], shown["links"]["report"]) == (None, None)
    assert [m["model_id"] for m in shown["models"]] == [*models, None]
    assert shown["models"][2]["error"]["code"] == "cascade_ended"
    found = api.get(shown["links"]["cascade"]).json()
    assert found["signature"]["algorithm"] == "ed25519"
    assert (found["soundness"], found["results"]) == ("estimate", [row])
    for path, code in ((f"/jobs/{job}/report", "no_report"), (f"/jobs/{job}/pareto", "no_sweep")):
        refused = api.get(path)
        assert (refused.status_code, refused.json()["code"]) == (404, code), path
    assert "/cascade" in api.get(f"/jobs/{job}/report").json()["hint"]
    assert api.get(f"/jobs/{good[0].id}/cascade").json()["code"] == "no_cascade"
    page = api.get(f"/jobs/{job}/view", headers={"Accept": "text/html"}).text
    for told in (
        "ESTIMATE: of the protocol.",
        "stage 2: 1",
        "50.0 %",
        "25.0 %",
        "cascade ended",
        "FAIL",
    ):
        assert told in page, told
