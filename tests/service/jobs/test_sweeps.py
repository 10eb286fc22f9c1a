"""What a sweep shows of its runs: models, reports, and how they compare; they are only read."""

from __future__ import annotations

from typing import Any

import httpx

from service.contract.ledger.ledger import Ledger
from service.contract.outcomes import conclude
from service.contract.schemas.problems import InvalidInput
from service.contract.storage.store import Store
from service.contract.sweeps import runs_of
from tests.service.api.trainings import training

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
