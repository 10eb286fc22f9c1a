"""GET /: the list of jobs, live, with actions on all jobs of a filter."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any
from urllib.parse import urlencode

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from markupsafe import Markup

from service.access.keys import Caller
from service.api.auth import Principal, Watchman
from service.api.services import Services, UsesServices
from service.console.broadcast import Snapshot, UsesBroadcast, event, streamed
from service.console.rendering import PAGE_HEADERS, accepts_html, fragment, page
from service.console.views.blanks import blank_is_none
from service.console.views.wording import count_text, title_of
from service.contract.ledger.ledger import JobState
from service.contract.schemas.submissions import TERMINAL, JobKind, JobStatus
from service.contract.times import now, seconds
from service.jobs.bulk import APPLIES_TO, BulkAction, BulkFilter, statuses_for
from service.jobs.control import record

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_ROWS = 50
#: Seconds between two looks for new jobs.
_LOOK_S = 3.0
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
    broadcast: UsesBroadcast,
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
    services.events.check_room()
    texts = broadcast.follow(
        services.events,
        ("jobs", principal, chosen.query, chosen.cursor),
        lambda: _Listed(services, principal, chosen),
        mark=have,
    )
    return streamed(texts, Watchman(request, services), greeting=event("hello", "").encode())


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


class _Listed:
    """A page of the list. Everything comes with the events: a browser that asked for the list anew
    each time would cost, times the number of viewers, what the list costs."""

    look_s = _LOOK_S

    def __init__(self, services: Services, caller: Caller, chosen: _Chosen) -> None:
        self._services, self._caller, self._chosen = services, caller, chosen
        self._shown = Snapshot({})
        self.jobs: Collection[str] = ()

    def look(self, changed: Collection[str] | None) -> Snapshot:
        before = self._shown
        if changed is not None:
            rows = _rows(self._services, [job_id for job_id in self.jobs if job_id in changed])
            parts = {**before.parts, **rows}
            self._shown = Snapshot(parts, before.frame, before.framed, before.mark)
            return self._shown
        listing = _listing(self._services, self._caller, self._chosen)
        context = _list_context(self._chosen, listing)
        rows = {f"job-{job_id}": html for job_id, html in context["rows"].items()}
        # Also what has just ended: it may be shown as it was before.
        self.jobs = [state.submission.id for state in listing.states if _may_change(state)]
        parts = {f"job-{job_id}": rows[f"job-{job_id}"] for job_id in self.jobs}
        if listing.mark == before.mark:
            self._shown = Snapshot(parts, before.frame, before.framed, before.mark)
        else:
            self._shown = Snapshot(parts, _frame(context), rows, listing.mark)
        return self._shown


@dataclass(frozen=True)
class _Listing:
    """The jobs of a page of the list, and how many there are in each state."""

    states: Sequence[JobState]
    following: str | None
    counts: Mapping[str, int]

    @cached_property
    def mark(self) -> str:
        """The same for the same jobs in the same order."""
        ids = "".join(state.submission.id for state in self.states)
        return hashlib.sha256(ids.encode()).hexdigest()[:16]


def _listing(services: Services, caller: Caller, chosen: _Chosen) -> _Listing:
    states, following = _page(services, caller, chosen)
    counts = _counts(services, caller, chosen.kind)
    return _Listing(states, following, counts)


def _frame(context: dict[str, Any]) -> dict[str, str]:
    """What changes where other jobs belong into the list."""
    counts = {f"count-{name}": count_text(context["counts"][name]) for name in STATUSES}
    return counts | {name: fragment(f"jobs_{name}.html", context) for name in ("bulk", "list")}


def _may_change(state: JobState) -> bool:
    if state.status not in TERMINAL or state.finished_at is None:
        return True
    return now() - seconds(state.finished_at) < _JUST_ENDED_S


def _rows(services: Services, job_ids: Collection[str]) -> dict[str, str]:
    """The rows of those of the jobs that the ledger knows, as parts of the page."""
    return {
        f"job-{state.submission.id}": fragment("jobs_row.html", {"row": row(state)})
        for state in services.ledger.index.get_many([*job_ids])
    }
