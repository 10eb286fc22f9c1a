"""GET /compare?a=&b=: two certifications side by side."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response

from service.access.keys import Caller
from service.api.auth import Principal
from service.api.services import Services, UsesServices
from service.console.rendering import need_html, page
from service.console.views.blanks import blank_is_none
from service.console.views.comparison import comparison
from service.console.views.wording import title_of
from service.contract.ledger.ledger import JobState
from service.contract.schemas.problems import NotFound
from service.contract.sweeps import runs_of, sweep_of, value_text

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_OFFERED = 100

_Choice = Annotated[str | None, blank_is_none]


@router.get("/compare")
async def compare_page(
    request: Request,
    services: UsesServices,
    principal: Principal,
    a: _Choice = None,
    b: _Choice = None,
) -> Response:
    """The two, or a form to choose them."""
    need_html(request, "GET /jobs/{id}/report of each")
    context = await to_thread.run_sync(lambda: _context(services, principal, a, b))
    return page(request, services, "compare.html", context, caller=principal)


def _context(services: Services, caller: Caller, a: str | None, b: str | None) -> dict[str, Any]:
    states, _ = services.jobs.page(
        caller, kind=None, statuses=["succeeded"], cursor=None, limit=_OFFERED
    )
    certified = [state for state in states if state.submission.spec.get("epsilons")]
    offered = [offer for state in certified for offer in _offers(services, state)]
    known = {choice["id"] for choice in offered}
    sides = []
    for job_id in (a, b):
        if job_id is not None:
            state = services.results.finished(job_id, caller)
            report = services.results.report(job_id, caller)
            if not report["results"]:
                raise NotFound("the report has no epsilons to compare", code="no_epsilons")
            rows = services.results.samples_path(job_id, caller)
            sides.append((_offer(state), report, rows))
            if job_id not in known:
                offered.append(_offer(state))
                known.add(job_id)
    both = comparison(*(side[1:] for side in sides)) if len(sides) == 2 else None
    return {"offered": offered, "a": a, "b": b, "sides": sides, "both": both}


def _offers(services: Services, state: JobState) -> list[dict[str, Any]]:
    """The job; of a sweep or a cascade, which has no such report, its models that have one."""
    models, sweep = services.jobs.models(state), sweep_of(state.submission)
    if models is None or sweep is None:
        return [_offer(state)]
    return [
        {
            **_offer(state),
            "id": run.id,
            "title": f"{title_of(state.submission)} · {sweep.name} {value_text(model.value)}",
        }
        for run, model in zip(runs_of(state.submission), models, strict=True)
        if model.links.report is not None
    ]


def _offer(state: JobState) -> dict[str, Any]:
    submission = state.submission
    return {
        "id": submission.id,
        "title": title_of(submission),
        "spec": submission.spec,
        "created_at": submission.created_at,
    }
