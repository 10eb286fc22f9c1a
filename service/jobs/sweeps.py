"""What a sweep has come to: its runs, which are read like jobs, its models, their comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from service.contract.ledger.leases import JobState
from service.contract.outcomes import trained_model
from service.contract.schemas.epsilons import epsilon_text, parse_epsilon
from service.contract.schemas.job_records import JobError, Pareto, ParetoPoint, RunLinks, SweptModel
from service.contract.schemas.problems import Conflict, InvalidInput, NotFound
from service.contract.schemas.submissions import TERMINAL, JobSubmission, Spec
from service.contract.storage.store import Store
from service.contract.sweeps import cascade_of, runs_of, sweep_of

__all__ = ["comparison", "models_of", "pareto", "run_state"]

#: Id of a run -> its report.
Reports = Callable[[str], dict[str, Any]]


def run_state(store: Store, whole: JobState, place: int) -> JobState | None:
    """One training of a sweep as if it were a job: in the state of the whole, unless it failed.
    None where the job has no such training."""
    runs = runs_of(whole.submission) if sweep_of(whole.submission) is not None else []
    return _run_state(store, whole, runs[place]) if place < len(runs) else None


def _run_state(store: Store, whole: JobState, run: JobSubmission) -> JobState:
    failure = store.read_json(store.failure_path(run.id))
    status = "failed" if failure is not None and whole.status in TERMINAL else whole.status
    return replace(
        whole,
        submission=run,
        status=status,
        error=failure if failure is not None else whole.error,
        model_id=trained_model(store, run),
    )


def models_of(store: Store, state: JobState) -> list[SweptModel] | None:
    """The models of a sweep so far; None for any other job."""
    sweep = sweep_of(state.submission)
    if sweep is None:
        return None
    found = []
    for value, run in zip(sweep.values, runs_of(state.submission), strict=True):
        shown = _run_state(store, state, run)
        failure = store.read_json(store.failure_path(run.id))
        reported = shown.status == "succeeded" and bool(run.spec)
        found.append(
            SweptModel(
                value=value,
                model_id=shown.model_id,
                error=None if failure is None else JobError.model_validate(failure),
                links=RunLinks.model_validate(
                    {
                        "self": f"/jobs/{run.id}",
                        "model": None if shown.model_id is None else f"/models/{shown.model_id}",
                        "report": f"/jobs/{run.id}/report" if reported else None,
                    }
                ),
            )
        )
    return found


def pareto(store: Store, state: JobState, reports: Reports, epsilon: str | None) -> Pareto:
    """Clean and certified accuracy of every model at one epsilon: the one asked for, by default the
    training's where the reports have it, else the reports' first.

    ``reports`` gives the report of a run. Raises NotFound, Conflict, InvalidInput.
    """
    submission = state.submission
    sweep, plan = sweep_of(submission), submission.training
    if sweep is None or plan is None or cascade_of(submission) is not None:
        raise NotFound("this job is not a sweep", code="no_sweep")
    if state.status != "succeeded":
        raise Conflict(
            f"the job is {state.status}",
            code="no_report" if state.status in TERMINAL else "not_finished",
            hint=f"GET /jobs/{submission.id}?wait=60",
        )
    if not submission.spec:
        raise NotFound("this sweep was asked for without a certification", code="no_report")
    spec = Spec.model_validate(submission.spec)
    place = _place(spec.epsilons, epsilon, Fraction(str(plan["epsilon"])))
    points = []
    for run, model in zip(runs_of(submission), models_of(store, state) or [], strict=True):
        if model.links.report is not None:
            report = reports(run.id)
            points.append(_point(model, report, report["results"][place]))
    return Pareto(
        job_id=submission.id,
        parameter=sweep.name,
        norm=spec.norm,
        epsilon=float(spec.epsilons[place]),
        epsilon_exact=epsilon_text(spec.epsilons[place]),
        points=[
            point.model_copy(update={"on_front": not any(_beats(other, point) for other in points)})
            for point in points
        ],
    )


def comparison(
    store: Store, state: JobState, reports: Reports, epsilon: str | None
) -> dict[str, Any]:
    """The same for a page: also how the models came about, those that failed, and all reports.

    ``service.reports.sweep_page`` says what is in it. Raises NotFound, Conflict, InvalidInput.
    """
    found, submission = pareto(store, state, reports, epsilon), state.submission
    data, trained_on = submission.dataset, submission.training_dataset
    models = []
    for run, model in zip(runs_of(submission), models_of(store, state) or [], strict=True):
        models.append(
            {
                "value": model.value,
                "job_id": run.id,
                "model_id": model.model_id,
                "error": None if model.error is None else model.error.model_dump(mode="json"),
                "report": None if model.links.report is None else reports(run.id),
            }
        )
    return {
        "pareto": found.model_dump(mode="json"),
        "plan": submission.training,
        "spec": submission.spec,
        "created_at": submission.created_at,
        "dataset": None if data is None else data.name,
        "trained_on": None if trained_on is None else trained_on.name,
        "models": models,
    }


def _place(epsilons: list[Fraction], asked: str | None, trained: Fraction) -> int:
    if asked is None:
        return epsilons.index(trained) if trained in epsilons else 0
    try:
        return epsilons.index(parse_epsilon(asked))
    except ValueError:
        raise InvalidInput(
            f"the models were not certified at epsilon {asked[:40]!r}",
            code="invalid_epsilon",
            hint=f"one of {', '.join(map(str, epsilons))}",
            field="epsilon",
        ) from None


def _point(model: SweptModel, report: dict[str, Any], row: dict[str, Any]) -> ParetoPoint:
    return ParetoPoint(
        value=model.value,
        model_id=model.model_id,
        soundness=report["soundness"],
        clean_accuracy=report["clean_accuracy"],
        certified_accuracy=row["certified_accuracy"],
        attack_accuracy=row["attack_accuracy"],
        samples=report["dataset"]["samples"],
        links=model.links,
    )


def _beats(one: ParetoPoint, other: ParetoPoint) -> bool:
    """Better in one of clean and certified accuracy, and not worse in the other."""
    pairs = [
        (one.clean_accuracy or 0.0, other.clean_accuracy or 0.0),
        (one.certified_accuracy or 0.0, other.certified_accuracy or 0.0),
    ]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
