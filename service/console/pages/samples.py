"""GET /jobs/{id}/samples/view: every sample with its verdict, filtered and sorted."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import numpy as np
from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response

from service.access.keys import Caller
from service.api.auth import Principal
from service.api.services import Services, UsesServices
from service.console.rendering import need_html, page
from service.console.views.blanks import blank_is_none
from service.console.views.sample_table import VERDICTS, SampleTable, Wish, sample_table
from service.console.views.wording import title_of
from service.contract.schemas.problems import NotFound
from service.contract.storage.pictures import is_picture
from service.reports.epsilon_names import epsilon_names
from service.reports.words.class_names import class_names

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_ROWS = 50

Order = Literal["index", "label", "prediction", "margin", "radius"]
Verdict = Literal["certified", "undecided", "falsified", "misclassified"]


@router.get("/jobs/{job_id}/samples/view")
async def samples_page(
    job_id: str,
    request: Request,
    services: UsesServices,
    principal: Principal,
    epsilon: Annotated[int, Query(ge=0, lt=100)] = 0,
    verdict: Annotated[Verdict | None, blank_is_none] = None,
    label: Annotated[int | None, blank_is_none] = None,
    method: Annotated[str | None, blank_is_none] = None,
    sort: Order = "index",
    down: bool = False,
    part: Annotated[int, Query(ge=0, lt=10**9)] = 0,
) -> Response:
    """Fifty rows of the filter, in the order asked for."""
    need_html(request, f"GET /jobs/{job_id[:40]}/samples")
    wish = Wish(epsilon, verdict, label, method, sort, down)
    context = await to_thread.run_sync(lambda: _context(services, job_id, principal, wish, part))
    return page(request, services, "samples.html", context, caller=principal)


def _context(
    services: Services, job_id: str, caller: Caller, wish: Wish, part: int
) -> dict[str, Any]:
    state = services.results.finished(job_id, caller)
    report = services.results.report(job_id, caller)
    if wish.epsilon >= len(report["results"]):
        raise NotFound("the report has no epsilon of this number", code="unknown_epsilon")
    table = sample_table(services.results.samples_path(job_id, caller))
    names = epsilon_names(report)
    order = sorted(range(len(names)), key=lambda place: report["results"][place]["epsilon"])
    context: dict[str, Any] = {
        "job_id": job_id,
        "title": title_of(state.submission),
        "names": names,
        "norm": report["threat"]["norm"],
        "classes": class_names(report),
        "pictures": is_picture(report["model"]["input_shape"]),
        "wish": wish,
        "verdicts": VERDICTS,
        "table": table,
        "rows": [],
        "part": part,
        "found": 0,
        "last": 0,
        "query": lambda **changes: _query(wish, part, changes),
    }
    if table is not None:
        places = table.chosen(wish)
        shown = places[part * _ROWS : (part + 1) * _ROWS]
        context |= {
            "rows": [_row(table, int(place), wish.epsilon, names, order) for place in shown],
            "found": len(places),
            "last": max(0, (len(places) - 1) // _ROWS),
        }
    return context


def _row(
    table: SampleTable, place: int, epsilon: int, names: list[str], order: list[int]
) -> dict[str, Any]:
    """A row at the epsilon of this place; ``order``: places of the epsilons, rising."""
    label, radius, margin = int(table.label[place]), table.radius[place], table.margin[place]
    verdict = VERDICTS[int(table.verdicts(epsilon)[place])]
    proved = [other for other in order if table.certified[place, other]]
    broken = [other for other in order if table.falsified[place, other]]
    return {
        "index": int(table.index[place]),
        "label": label if label >= 0 else None,
        "prediction": int(table.prediction[place]),
        "margin": None if np.isnan(margin) else float(margin),
        "radius": None if not np.isfinite(radius) else float(radius),
        "unbounded": bool(np.isposinf(radius)),
        "verdict": verdict,
        # Within the ball of this epsilon: the one whose picture is kept is the nearest.
        "broken_at": names[broken[0]] if verdict == "falsified" else None,
        "method": table.method[place],
        # The bound is the one that proved the largest epsilon.
        "proved_at": names[proved[-1]] if proved else None,
    }


def _query(wish: Wish, part: int, changes: dict[str, Any]) -> str:
    values: dict[str, Any] = {
        "epsilon": wish.epsilon,
        "verdict": wish.verdict,
        "label": wish.label,
        "method": wish.method,
        "sort": wish.order,
        "down": "true" if wish.descending else None,
        "part": part,
        **changes,
    }
    return "?" + urlencode({name: value for name, value in values.items() if value is not None})
