"""GET /jobs/{id}/view: a job while it runs, and what came of it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from service.access.keys import Caller
from service.api.auth import Principal
from service.api.services import Services, UsesServices
from service.console.pages.jobs import row
from service.console.rendering import fragment, need_html, page
from service.console.views.certificate import certificate
from service.console.views.figures import history_charts
from service.console.views.streams import STREAM_HEADERS, event
from service.contract.ledger.ledger import JobState
from service.contract.schemas.problems import NotFound
from service.contract.schemas.submissions import TERMINAL

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

#: Seconds between two looks at a training's curve while nothing else is new.
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
    job_id: str, services: UsesServices, principal: Principal
) -> StreamingResponse:
    """``progress`` and ``curve`` of a running job as parts of its page, then ``ended``."""
    state = await to_thread.run_sync(services.jobs.visible, job_id, principal)
    lines = _events(services, state)
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
    }
    context |= _training(services, state)
    if state.status == "succeeded" and state.submission.spec:
        report = services.results.report(job_id, caller)
        if not report["results"]:
            # A property is one question with one answer: no samples, no epsilons.
            return {**context, "answer": report.get("property")}
        path = services.results.samples_path(job_id, caller)
        context |= {"report": report, "found": certificate(report, path)}
    return context


def _training(services: Services, state: JobState) -> dict[str, Any]:
    plan = state.submission.training
    if plan is None:
        return {"plan": None, "charts": [], "history": []}
    history = services.results.history(state.submission.id)
    return {"plan": plan, "charts": history_charts(plan, history), "history": history}


async def _events(services: Services, state: JobState) -> AsyncIterator[str]:
    job_id, epochs, looked = state.submission.id, -1, time.monotonic()
    if state.status in TERMINAL:
        yield event("ended", "")
        return
    async with aclosing(services.events.changes([job_id], pause_s=_LOOK_S)) as changes:
        async for changed in changes:
            if changed:
                try:
                    state = await to_thread.run_sync(services.jobs.state, job_id)
                except NotFound:
                    return
                if state.status in TERMINAL:
                    yield event("ended", "")
                    return
                yield event("progress", fragment("job_progress.html", {"job": row(state)}))
            else:
                yield ": keep-alive\n\n"
            if state.submission.training is None or time.monotonic() - looked < _LOOK_S:
                continue
            looked = time.monotonic()
            context = await to_thread.run_sync(_training, services, state)
            if len(context["history"]) != epochs:
                epochs = len(context["history"])
                yield event("curve", fragment("job_curve.html", context))
