"""GET /jobs/{id}/events: progress as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse

from service.api.auth import Principal, Watchman
from service.api.services import UsesServices
from service.jobs.event_hub import EventBatch

__all__ = ["router"]

router = APIRouter(tags=["jobs"])

#: One event; the stream has any number of them.
_EVENT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string", "enum": ["status", "progress"]},
        "data": {"type": "string", "description": "A JSON object"},
    },
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events `status` ({status}) and `progress` ({done, total, unit, message, "
        "eta_s}) with ids; the last one is a terminal status",
        "content": {"text/event-stream": {"schema": _EVENT}},
    },
    204: {"description": "The job has ended and nothing came after Last-Event-ID"},
}
#: A browser that lost the connection comes back after so many milliseconds.
_RETRY = b"retry: 2000\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"


@router.get(
    "/jobs/{job_id}/events",
    response_class=Response,
    responses=_STREAM,
    summary="Follow a job (server-sent events)",
)
async def job_events(
    job_id: str,
    request: Request,
    services: UsesServices,
    principal: Principal,
    last_event_id: Annotated[str, Header(max_length=100)] = "",
) -> Response:
    """All events so far, or those behind `Last-Event-ID`, then new ones as they come, until the
    job has ended. Comments keep a quiet stream alive."""
    state = await to_thread.run_sync(services.jobs.whole, job_id, principal)
    events = await services.events.follow(state, last_event_id)
    if events is None:
        return Response(status_code=204)  # tells EventSource not to come back
    lines = _lines(events, Watchman(request, services))
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines, media_type="text/event-stream", headers=headers)


async def _lines(events: AsyncGenerator[EventBatch], watchman: Watchman) -> AsyncIterator[bytes]:
    async with aclosing(events):
        greeting = _RETRY
        async for batch in events:
            if not await watchman.lets_in():
                return
            yield greeting + (batch.text or _KEEP_ALIVE)
            greeting = b""
