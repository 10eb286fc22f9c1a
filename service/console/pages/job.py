"""GET /jobs/{id}/view: a job while it runs, and what came of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from service.access.keys import Caller
from service.api.auth import Principal, Watchman
from service.api.services import Services, UsesServices
from service.console.pages.jobs import row
from service.console.rendering import fragment, need_html, page
from service.console.shared import Shared, UsesShared
from service.console.views.certificate import certificate
from service.console.views.figures import history_charts, thinned
from service.console.views.streams import STREAM_HEADERS, event
from service.contract.ids import place_of
from service.contract.ledger.ledger import JobState
from service.contract.schemas.problems import NotFound
from service.contract.schemas.submissions import TERMINAL
from service.contract.sweeps import cascade_of, stage_of, sweep_of
from service.reports.evidence import criterion

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

#: Seconds between two looks at a training's curve while nothing else is new.
_LOOK_S = 2.0
#: The shortest time between two versions of what is shown.
_PAUSE_S = 0.5


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
    shared: UsesShared,
    principal: Principal,
) -> StreamingResponse:
    """``progress`` and ``curve`` of a running job as parts of its page, then ``ended``."""
    state = await to_thread.run_sync(services.jobs.visible, job_id, principal)
    lines = _events(services, shared, state, Watchman(request, services))
    return StreamingResponse(lines, media_type="text/event-stream", headers=STREAM_HEADERS)


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
            return {**context, "answer": report.get("property"), "about": report}
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


async def _events(
    services: Services, shared: Shared, state: JobState, watchman: Watchman
) -> AsyncIterator[str]:
    job_id, epochs, looked = state.submission.id, -1, time.monotonic()
    trains, since = state.submission.training is not None, time.monotonic()
    async with aclosing(services.events.changes([job_id], pause_s=_LOOK_S)) as changes:
        async for changed in changes:
            if not await watchman.lets_in():
                return
            # Now and then without an event too: Redis may have lost some.
            html = await shared.get(
                ("progress", job_id), lambda: _progress(services, job_id), since=since
            )
            if html is None:
                yield event("ended", "")
                return
            yield event("progress", html) if changed else ": keep-alive\n\n"
            if trains and time.monotonic() - looked >= _LOOK_S:
                looked = time.monotonic()
                count, curve = await shared.get(
                    ("curve", job_id), lambda: _curve(services, state), kept_s=_LOOK_S
                )
                if count != epochs:
                    epochs = count
                    yield event("curve", curve)
            await asyncio.sleep(_PAUSE_S)


def _progress(services: Services, job_id: str) -> str | None:
    """How far a job is, as a part of its page; None once it has ended or was deleted."""
    try:
        state = services.jobs.state(job_id)
    except NotFound:
        return None
    if state.status in TERMINAL:
        return None
    return fragment("job_progress.html", {"job": row(state)})


def _curve(services: Services, state: JobState) -> tuple[int, str]:
    """How many epochs a training's curve has, and the curve as a part of its page."""
    context = _training(services, state)
    return len(context["history"]), fragment("job_curve.html", context)
