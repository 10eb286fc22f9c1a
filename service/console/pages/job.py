"""GET /jobs/{id}/view: a job while it runs, and what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from service.access.keys import Caller
from service.api.auth import Principal, Watchman
from service.api.services import Services, UsesServices
from service.console.broadcast import Snapshot, UsesBroadcast, streamed
from service.console.pages.jobs import row
from service.console.rendering import fragment, need_html, page
from service.console.views.certificate import certificate
from service.console.views.figures import history_charts, thinned
from service.contract.ids import place_of
from service.contract.ledger.ledger import JobState
from service.contract.schemas.problems import NotFound
from service.contract.schemas.submissions import TERMINAL
from service.contract.sweeps import cascade_of, stage_of, sweep_of
from service.reports.evidence import criterion
from service.reports.words.advice import advice, in_json
from service.reports.words.stated_property import stated_property

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

#: Seconds between two looks at a training's curve, and at a job whose events Redis may have lost.
_LOOK_S = 2.0


@router.get("/jobs/{job_id}/view")
async def job_page(
    job_id: str, request: Request, services: UsesServices, principal: Principal
) -> Response:
    """The page of a certification or a training."""
    need_html(request, f"GET /jobs/{job_id[:40]}")
    context = await to_thread.run_sync(lambda: _context(services, job_id, principal))
    return page(request, services, "job.html", context, caller=principal)


@router.get("/jobs/{job_id}/view/events")
async def job_page_events(
    job_id: str,
    request: Request,
    services: UsesServices,
    broadcast: UsesBroadcast,
    principal: Principal,
) -> StreamingResponse:
    """``progress`` and ``curve`` of a running job as parts of its page, then ``ended``."""
    state = await to_thread.run_sync(services.jobs.visible, job_id, principal)
    services.events.check_room()
    texts = broadcast.follow(services.events, ("job", job_id), lambda: _Running(services, state))
    return streamed(texts, Watchman(request, services))


def _context(services: Services, job_id: str, caller: Caller) -> dict[str, Any]:
    state = services.jobs.visible(job_id, caller)
    context: dict[str, Any] = {
        "job": row(state),
        "state": state,
        "submission": state.submission,
        "report": None,
        "found": None,
        "answer": None,
        "sweep": sweep_of(state.submission),
        "staged": cascade_of(state.submission),
        "cascade": None,
        "models": None,
        "pareto": None,
        "part": _part(state),
    }
    context |= _training(services, state)
    if context["sweep"] is not None:
        return context | _sweep(services, state, caller)
    if state.status == "succeeded" and state.submission.spec:
        report = services.results.report(job_id, caller)
        if not report["results"]:
            # A property is one question with one answer: no samples, no epsilons.
            answer = report.get("property")
            asked = None if answer is None else stated_property(report)
            told = advice(report, in_json)
            return {**context, "answer": answer, "about": report, "asked": asked, "advice": told}
        path = services.results.samples_path(job_id, caller)
        context |= {"report": report, "found": certificate(report, path)}
    return context


def _part(state: JobState) -> dict[str, Any] | None:
    """Of one training of a sweep or cascade: the job it belongs to, and its number there."""
    run = place_of(state.submission.id)
    kind = "a sweep" if stage_of(state.submission) is None else "a cascade"
    return None if run is None else {"job": run[0], "number": run[1] + 1, "kind": kind}


def _sweep(services: Services, state: JobState, caller: Caller) -> dict[str, Any]:
    """The models of a sweep, and once there are reports their comparison; of a cascade what they
    come to together."""
    models = services.jobs.models(state)
    if state.status != "succeeded" or not state.submission.spec:
        return {"models": models}
    if cascade_of(state.submission) is not None:
        path = services.results.cascade_path(state.submission.id, caller)
        cascade = json.loads(path.read_bytes())
        return {"models": models, "cascade": cascade, "criterion": criterion(cascade)}
    pareto = services.results.pareto(state.submission.id, None, caller)
    points = {point.model_id: point for point in pareto.points}
    return {"models": models, "pareto": pareto, "points": points}


def _training(services: Services, state: JobState) -> dict[str, Any]:
    plan = state.submission.training
    if plan is None:
        return {"plan": None, "charts": [], "history": [], "table": []}
    history = services.results.history(state.submission.id)
    return {
        "plan": plan,
        "charts": history_charts(plan, history),
        "history": history,
        # With every epoch of a training that goes on an open table would be closed.
        "table": thinned(history) if state.status in TERMINAL else [],
    }


class _Running:
    """The parts of a running job's page that change."""

    look_s = _LOOK_S

    def __init__(self, services: Services, state: JobState) -> None:
        self._services, self._state = services, state
        self._looked = -_LOOK_S
        self._curve: dict[str, str] = {}
        self.jobs: Collection[str] = [state.submission.id]

    def look(self, changed: Collection[str] | None) -> Snapshot:
        html = _progress(self._services, self._state.submission.id)
        if html is None:
            return Snapshot({"ended": ""}, ended=True)
        trains = self._state.submission.training is not None
        if trains and time.monotonic() - self._looked >= _LOOK_S:
            self._looked = time.monotonic()
            context = _training(self._services, self._state)
            self._curve = {"curve": fragment("job_curve.html", context)}
        return Snapshot({"progress": html, **self._curve})


def _progress(services: Services, job_id: str) -> str | None:
    """How far a job is, as a part of its page; None once it has ended or was deleted."""
    try:
        state = services.jobs.state(job_id)
    except NotFound:
        return None
    if state.status in TERMINAL:
        return None
    return fragment("job_progress.html", {"job": row(state)})
