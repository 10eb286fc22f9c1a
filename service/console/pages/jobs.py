"""GET /: the list of jobs, live, with actions on all jobs of a filter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse

from service.access.keys import Caller
from service.api.auth import Principal, Watchman
from service.api.services import Services, UsesServices
from service.console.rendering import PAGE_HEADERS, accepts_html, fragment, page
from service.console.shared import Shared, UsesShared
from service.console.views.blanks import blank_is_none
from service.console.views.streams import STREAM_HEADERS, event
from service.console.views.wording import title_of
from service.contract.ledger.ledger import JobState
from service.contract.schemas.problems import NotFound
from service.contract.schemas.submissions import TERMINAL, JobKind, JobStatus
from service.contract.times import now, seconds
from service.jobs.bulk import APPLIES_TO, BulkAction, BulkFilter, statuses_for
from service.jobs.control import record

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_ROWS = 50
#: Seconds between two looks for new jobs, and the shortest time between two versions of a row.
_LOOK_S = 3.0
_PAUSE_S = 0.5
_JUST_ENDED_S = 60.0
STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")

_Kind = Annotated[JobKind | None, blank_is_none]
_Statuses = Annotated[list[JobStatus] | None, Query()]


@dataclass(frozen=True)
class _Chosen:
    """What the address of the list asks for."""

    kind: JobKind | None
    statuses: Sequence[JobStatus]
    cursor: str | None

    @property
    def query(self) -> str:
        """The filter as it stands in an address."""
        pairs = [("kind", self.kind)] if self.kind else []
        return urlencode([*pairs, *(("status", status) for status in self.statuses)])


@router.get("/")
async def jobs_page(
    request: Request,
    services: UsesServices,
    principal: Principal,
    kind: _Kind = None,
    status: _Statuses = None,
    cursor: str | None = None,
) -> Response:
    """The list for people; for programs the same as GET /jobs."""
    chosen = _Chosen(kind, status or (), cursor)
    states, following = await to_thread.run_sync(lambda: _page(services, principal, chosen))
    if not accepts_html(request):
        items = [record(state).model_dump(mode="json") for state in states]
        return JSONResponse({"items": items, "next_cursor": following})
    counts = await to_thread.run_sync(lambda: _counts(services, principal, kind))
    context = _list_context(chosen, states, following, counts)
    return page(request, services, "jobs.html", context, caller=principal)


@router.get("/console/jobs/events")
async def job_list_events(
    request: Request,
    services: UsesServices,
    shared: UsesShared,
    principal: Principal,
    kind: _Kind = None,
    status: _Statuses = None,
    cursor: str | None = None,
) -> Response:
    """Rows of the list as they change (``job-ID``), and ``list`` when other jobs belong there."""
    chosen = _Chosen(kind, status or (), cursor)
    watchman = Watchman(request, services)
    lines = _row_events(services, shared, principal, chosen, watchman)
    return StreamingResponse(lines, media_type="text/event-stream", headers=STREAM_HEADERS)


@router.get("/console/jobs/confirm")
async def confirm(
    services: UsesServices,
    principal: Principal,
    action: BulkAction,
    kind: _Kind = None,
    status: _Statuses = None,
) -> HTMLResponse:
    """What an action on all jobs of the filter would do, and the form that does it."""
    counts = await to_thread.run_sync(lambda: _counts(services, principal, kind))
    chosen = BulkFilter(kind=kind, status=status or [])
    affected = statuses_for(action, chosen)
    count = sum(counts[name] for name in affected)
    wish = {
        "action": action,
        "filter": chosen.model_dump(mode="json"),
        "expected_count": count,
    }
    context = {"action": action, "count": count, "affected": affected, "kind": kind, "wish": wish}
    return HTMLResponse(fragment("jobs_confirm.html", context), headers=PAGE_HEADERS)


def row(state: JobState) -> dict[str, Any]:
    """A job as the list shows it."""
    progress = state.progress
    known = state.status == "running" and progress.total
    share = min(1.0, progress.done / progress.total) if known and progress.total else None
    return {
        "id": state.submission.id,
        "title": title_of(state.submission),
        "kind": state.submission.kind,
        "status": state.status,
        "active": state.status not in TERMINAL,
        "progress": progress,
        "share": share,
        "error": state.error,
        "created_at": state.submission.created_at,
        "spec": state.submission.spec,
        "property": state.submission.vnnlib is not None,
        "plan": state.submission.training,
    }


def _page(services: Services, caller: Caller, chosen: _Chosen) -> tuple[list[JobState], str | None]:
    return services.jobs.page(
        caller, kind=chosen.kind, statuses=chosen.statuses, cursor=chosen.cursor, limit=_ROWS
    )


def _counts(services: Services, caller: Caller, kind: str | None) -> dict[str, int]:
    owner = None if caller.admin else caller.name
    return services.ledger.index.counts_of(kind=kind, owner=owner)


def _list_context(
    chosen: _Chosen, states: Collection[JobState], following: str | None, counts: dict[str, int]
) -> dict[str, Any]:
    wished = BulkFilter(kind=chosen.kind, status=list(chosen.statuses))
    affected = {
        action: sum(counts[name] for name in statuses_for(action, wished)) for action in APPLIES_TO
    }
    return {
        "rows": [row(state) for state in states],
        "counts": counts,
        "total": sum(counts.values()),
        "statuses": STATUSES,
        "chosen": chosen,
        "affected": affected,
        "following": following,
    }


async def _row_events(
    services: Services, shared: Shared, caller: Caller, chosen: _Chosen, watchman: Watchman
) -> AsyncIterator[str]:
    listed = ("list", caller, chosen.query, chosen.cursor)

    def look() -> list[JobState]:
        return _page(services, caller, chosen)[0]

    shown = await shared.get(listed, look, kept_s=_LOOK_S)
    known = [state.submission.id for state in shown]
    # Also what has just ended: the page may have been made before.
    active = [state.submission.id for state in shown if _may_change(state)]
    looked, fresh = time.monotonic(), True
    yield event("hello", "")
    async with aclosing(services.events.changes(active, pause_s=_LOOK_S)) as changes:
        async for changed in changes:
            if not await watchman.lets_in():
                return
            for job_id in sorted(changed):
                make = partial(_row, services, job_id)
                html = await shared.get(("row", job_id), make, fresh=fresh)
                if html is not None:
                    yield event(f"job-{job_id}", html)
            fresh = False
            if time.monotonic() - looked < _LOOK_S:
                await asyncio.sleep(_PAUSE_S)
                continue
            looked = time.monotonic()
            listing = await shared.get(listed, look, kept_s=_LOOK_S)
            if [state.submission.id for state in listing] != known:
                # The page asks for the list again, and comes back here with the new one.
                yield event("list", "")
                known = [state.submission.id for state in listing]
            else:
                yield ": keep-alive\n\n"


def _may_change(state: JobState) -> bool:
    if state.status not in TERMINAL or state.finished_at is None:
        return True
    return now() - seconds(state.finished_at) < _JUST_ENDED_S


def _row(services: Services, job_id: str) -> str | None:
    """The row of a job as it is now; None where it was deleted."""
    try:
        state = services.jobs.state(job_id)
    except NotFound:
        return None  # the next look at the list tells
    return fragment("jobs_row.html", {"row": row(state)})
