"""What many viewers follow at the same time: looked at once, and sent to all as the same bytes.

Two hundred people who follow one page cost one look, one rendering and one text each time that it
changes; for each of them remain a wake-up and a write. A viewer who is slow to read is not sent
what it missed but what the page has come to, so nothing is kept for anybody.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Hashable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Protocol

from anyio import to_thread
from fastapi import Depends, Request
from fastapi.responses import StreamingResponse
from redis.exceptions import RedisError

from service.api.auth import Watchman
from service.contract.schemas.problems import Unavailable
from service.jobs.event_hub import EventHub, Glance

__all__ = ["Broadcast", "Snapshot", "Source", "UsesBroadcast", "streamed"]

_log = logging.getLogger(__name__)

_KEEP_ALIVE = b": keep-alive\n\n"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_RETRY_S = 1.0


@dataclass(frozen=True)
class Snapshot:
    """A page as its viewers are to have it, in parts by name, as HTML.

    ``parts`` are replaced each by itself; ``frame`` is what they stand in, with the parts in it as
    ``framed`` says. ``mark`` names the frame: whoever shows that needs the parts alone. ``ended``:
    nothing comes after this.
    """

    parts: Mapping[str, str]
    frame: Mapping[str, str] = field(default_factory=dict)
    framed: Mapping[str, str] = field(default_factory=dict)
    mark: str | None = None
    ended: bool = False

    @cached_property
    def parts_text(self) -> bytes:
        """For a viewer with this frame, whatever parts it has."""
        return _events(self.parts)

    @cached_property
    def text(self) -> bytes:
        """For a viewer with another frame."""
        return _events(self.frame) + self._since(self.framed)

    def news(self, before: Snapshot) -> bytes:
        """For a viewer who has what was before."""
        return self._since(before.parts) if before.mark == self.mark else self.text

    def _since(self, parts: Mapping[str, str]) -> bytes:
        changed = {name: html for name, html in self.parts.items() if parts.get(name) != html}
        return _events(changed)


class Source(Protocol):
    """What a channel looks at; one look at a time."""

    #: Seconds between two looks at everything; viewers get something at least so often.
    look_s: float
    #: The jobs whose events are a reason to look.
    jobs: Collection[str]

    def look(self, changed: Collection[str] | None) -> Snapshot:
        """What there is now: these jobs have changed, or, None, anything may have. In a thread."""


class Broadcast:
    """One per process, used from its event loop only."""

    def __init__(self) -> None:
        self._channels: dict[Hashable, _Channel] = {}

    async def follow(
        self, hub: EventHub, key: Hashable, make: Callable[[], Source], *, mark: str | None = None
    ) -> AsyncGenerator[bytes]:
        """Server-sent events of what ``make`` gives, which is made for the first viewer of ``key``.

        What comes first was looked at after this began: a page may be newer than what others were
        sent. ``mark``: of the frame that the viewer has, None where it has the right one.
        """
        channel = self._channels.get(key)
        if channel is None or channel.over:
            channel = self._channels[key] = _Channel(hub, make())
        channel.viewers += 1
        try:
            with hub.viewer():
                await channel.looked_after(time.monotonic())
                number: int | None = None
                while channel.snapshot is not None:
                    if number == channel.number:
                        if channel.over:
                            break
                        await channel.arrived.wait()
                        continue
                    snapshot = channel.snapshot
                    if number is not None and channel.number == number + 1:
                        text = channel.news
                    elif mark is None or mark == snapshot.mark:
                        text = snapshot.parts_text
                    else:
                        text = snapshot.text
                    number, mark = channel.number, snapshot.mark
                    yield text or _KEEP_ALIVE
                    if snapshot.ended:
                        return
                await channel.task  # raises what ended it
        finally:
            channel.viewers -= 1
            if not channel.viewers:
                channel.task.cancel()
                if self._channels.get(key) is channel:
                    del self._channels[key]


class _Channel:
    """One source with its viewers; ``number`` counts the texts that were sent to all of them."""

    def __init__(self, hub: EventHub, source: Source) -> None:
        self.viewers = 0
        self.number = 0
        self.news = b""
        self.snapshot: Snapshot | None = None
        self.over = False
        self.arrived, self._looked = asyncio.Event(), asyncio.Event()
        self._began = self._sent = 0.0
        self._asked = False
        self._glance: Glance | None = None
        self._hub, self._source = hub, source
        self.task = asyncio.create_task(self._run())

    async def looked_after(self, moment: float) -> None:
        """Wait for a look that begins after this moment. Viewers who come together share one."""
        self._asked = True
        if self._glance is not None:
            self._glance.wake()
        while self._began < moment and not self.over:
            await self._looked.wait()

    async def _run(self) -> None:
        try:
            with self._hub.glance() as self._glance:
                await self._follow(self._glance)
        finally:
            self.over = True
            self._wake_all()
            self._looked.set()

    async def _follow(self, glance: Glance) -> None:
        changed: Collection[str] | None = None
        due = 0.0
        while not glance.closed:
            began = time.monotonic()
            if self._asked or changed is None or began >= due:
                changed, self._asked, due = None, False, began + self._source.look_s
            try:
                snapshot = await to_thread.run_sync(self._source.look, changed)
            except (RedisError, Unavailable) as error:
                _log.warning("a page waits for Redis: %s", error)
                changed = None
                await asyncio.sleep(_RETRY_S)
                continue
            self._publish(snapshot, began)
            if snapshot.ended:
                return
            await glance.turn_to(self._source.jobs)
            await asyncio.sleep(self._hub.pause_s)
            changed = await glance.changes(due - time.monotonic())

    def _publish(self, snapshot: Snapshot, began: float) -> None:
        before, self.snapshot, self._began = self.snapshot, snapshot, began
        news = b"" if before is None else snapshot.news(before)
        if news or began - self._sent >= self._source.look_s:
            self.number, self.news, self._sent = self.number + 1, news, began
            self._wake_all()
        looked, self._looked = self._looked, asyncio.Event()
        looked.set()

    def _wake_all(self) -> None:
        arrived, self.arrived = self.arrived, asyncio.Event()
        arrived.set()


def streamed(
    texts: AsyncGenerator[bytes], watchman: Watchman, *, greeting: bytes = b""
) -> StreamingResponse:
    """The response that tells one viewer, as long as the watchman lets it in."""

    async def told() -> AsyncIterator[bytes]:
        if greeting:
            yield greeting
        async with aclosing(texts):
            async for text in texts:
                if not await watchman.lets_in():
                    return
                yield text

    return StreamingResponse(told(), media_type="text/event-stream", headers=_HEADERS)


def event(name: str, html: str) -> str:
    """One event; the browser joins the lines of its data again."""
    data = "".join(f"data: {line}\n" for line in html.splitlines() or [""])
    return f"event: {name}\n{data}\n"


def _events(parts: Mapping[str, str]) -> bytes:
    return "".join(event(name, html) for name, html in parts.items()).encode()


def _broadcast(request: Request) -> Broadcast:
    found = request.app.state.broadcast
    assert isinstance(found, Broadcast)
    return found


#: The process' channels, as an endpoint's parameter.
UsesBroadcast = Annotated[Broadcast, Depends(_broadcast)]
