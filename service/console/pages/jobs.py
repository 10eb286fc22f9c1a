"""GET /: the list of jobs, live, with actions on all jobs of a filter."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any
from urllib.parse import urlencode

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from markupsafe import Markup

from service.access.keys import Caller
from service.api.auth import Principal, Watchman
from service.api.services import Services, UsesServices
from service.console.rendering import PAGE_HEADERS, accepts_html, fragment, page
from service.console.shared import Shared, UsesShared
from service.console.views.blanks import blank_is_none
from service.console.views.streams import STREAM_HEADERS, event
from service.console.views.wording import count_text, title_of
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
    if not accepts_html(request):
        states, following = await to_thread.run_sync(lambda: _page(services, principal, chosen))
        items = [record(state).model_dump(mode="json") for state in states]
        return JSONResponse({"items": items, "next_cursor": following})
    context = await to_thread.run_sync(
        lambda: _list_context(chosen, _listing(services, principal, chosen))
    )
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
    have: str | None = None,
) -> Response:
    """Rows of the list as they change (``job-ID``); where other jobs belong there ``list``, with
    the counts and the actions that go with it (``count-STATE``, ``bulk``). ``have``: the mark of
    the list that the page shows."""
    chosen = _Chosen(kind, status or (), cursor)
    watchman = Watchman(request, services)
    lines = _row_events(services, shared, principal, chosen, have, watchman)
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


def _list_context(chosen: _Chosen, listing: _Listing) -> dict[str, Any]:
    counts = listing.counts
    wished = BulkFilter(kind=chosen.kind, status=list(chosen.statuses))
    affected = {
        action: sum(counts[name] for name in statuses_for(action, wished)) for action in APPLIES_TO
    }
    return {
        # Markup of ours, as are all templates.
        "rows": {
            state.submission.id: Markup(fragment("jobs_row.html", {"row": row(state)}))  # noqa: S704
            for state in listing.states
        },
        "counts": counts,
        "total": sum(counts.values()),
        "statuses": STATUSES,
        "chosen": chosen,
        "have": listing.mark,
        "affected": affected,
        "following": listing.following,
    }


async def _row_events(
    services: Services,
    shared: Shared,
    caller: Caller,
    chosen: _Chosen,
    have: str | None,
    watchman: Watchman,
) -> AsyncIterator[str]:
    """Everything comes with the events: a browser that asked for the list anew each time would
    cost, times the number of viewers, what the list costs."""
    address = (caller, chosen.query, chosen.cursor)

    async def look(since: float) -> _Listing:
        make = partial(_listing, services, caller, chosen)
        return await shared.get(("list", *address), make, kept_s=_LOOK_S, since=since)

    yield event("hello", "")
    # What is made after this is no older than the page. Viewers who come at the same time wait for
    # each other, and share one look.
    since = time.monotonic()
    await asyncio.sleep(_PAUSE_S)
    listing = await look(since)
    known = listing.mark if have is None else have
    #: Rows as this viewer has them, where that is known.
    shown: dict[str, str] = {}
    while True:
        if listing.mark != known:
            make_parts = partial(_parts, chosen, listing)
            key = ("parts", *address, listing.mark, listing.made)
            parts = await shared.get(key, make_parts, kept_s=_LOOK_S)
            known, shown = listing.mark, dict(parts.rows)
            yield parts.events
        # Also what has just ended: it may be shown as it was before.
        active = [state.submission.id for state in listing.states if _may_change(state)]
        looked, since = time.monotonic(), math.inf
        async with aclosing(services.events.changes(active, pause_s=_LOOK_S)) as changes:
            async for changed in changes:
                rows: dict[str, str | None] = {}
                if since == math.inf:
                    # The first time all of them are named: one look for all rows and viewers.
                    since = time.monotonic()
                    await asyncio.sleep(_PAUSE_S)
                    make_rows = partial(_rows, services, active)
                    rows = await shared.get(("rows", *active), make_rows, since=since)
                if not await watchman.lets_in():
                    return
                for job_id in sorted(changed):
                    row_html = rows.get(job_id)
                    if row_html is None:
                        make_row = partial(_row, services, job_id)
                        row_html = await shared.get(("row", job_id), make_row, since=since)
                    if row_html is not None and row_html != shown.get(job_id):
                        shown[job_id] = row_html
                        yield event(f"job-{job_id}", row_html)
                if time.monotonic() - looked < _LOOK_S:
                    await asyncio.sleep(_PAUSE_S)
                    continue
                looked = time.monotonic()
                listing = await look(-math.inf)
                if listing.mark != known:
                    break
                yield ": keep-alive\n\n"
            else:
                return  # the service stops


@dataclass(frozen=True)
class _Listing:
    """The jobs of a page of the list, and how many there are in each state; ``made``: when."""

    states: Sequence[JobState]
    following: str | None
    counts: Mapping[str, int]
    made: float

    @cached_property
    def mark(self) -> str:
        """The same for the same jobs in the same order."""
        ids = "".join(state.submission.id for state in self.states)
        return hashlib.sha256(ids.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Parts:
    """A list as its page has it: its rows, and as events the parts that change with it."""

    rows: dict[str, str]
    events: str


def _listing(services: Services, caller: Caller, chosen: _Chosen) -> _Listing:
    states, following = _page(services, caller, chosen)
    counts = _counts(services, caller, chosen.kind)
    return _Listing(states, following, counts, time.monotonic())


def _parts(chosen: _Chosen, listing: _Listing) -> _Parts:
    context = _list_context(chosen, listing)
    counts = [(f"count-{name}", count_text(context["counts"][name])) for name in STATUSES]
    parts = [(name, fragment(f"jobs_{name}.html", context)) for name in ("bulk", "list")]
    return _Parts(context["rows"], "".join(event(*part) for part in (*counts, *parts)))


def _may_change(state: JobState) -> bool:
    if state.status not in TERMINAL or state.finished_at is None:
        return True
    return now() - seconds(state.finished_at) < _JUST_ENDED_S


def _rows(services: Services, job_ids: Sequence[str]) -> dict[str, str | None]:
    """The rows of those of the jobs that the ledger knows."""
    return {
        state.submission.id: fragment("jobs_row.html", {"row": row(state)})
        for state in services.ledger.index.get_many(job_ids)
    }


def _row(services: Services, job_id: str) -> str | None:
    """The row of a job as it is now; None where it was deleted."""
    try:
        state = services.jobs.state(job_id)
    except NotFound:
        return None  # the next look at the list tells
    return fragment("jobs_row.html", {"row": row(state)})
