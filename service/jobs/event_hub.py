"""Following jobs: one reader per process asks Redis for all of its viewers.

The number of viewers changes neither the number of round trips nor the work for an event: what
comes within half a second is one batch, whose text is made once. Batches of a job are a chain;
each viewer stands at its own link of it, so nothing is queued for anybody, and a batch costs a
viewer one wake-up and one write. The events behind its ``Last-Event-ID`` are read from the job's
stream when it connects.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property

from anyio import to_thread
from redis.exceptions import RedisError

from service.contract.ledger.event_stream import EventLog, JobEvent
from service.contract.ledger.ledger import JobState
from service.contract.outcomes import outcome_state
from service.contract.schemas.problems import TooManyRequests
from service.contract.schemas.submissions import TERMINAL
from service.contract.storage.store import Store
from service.contract.times import now, seconds

__all__ = ["EventBatch", "EventHub", "Glance"]

_log = logging.getLogger(__name__)

#: Seconds between two reads of new events while there are viewers.
_LOOK_S = 0.25
#: Seconds between two messages to one viewer: what happens in between comes together. Most of what
#: a viewer costs is the sending.
_TOGETHER_S = 0.5
#: Messages per second to all viewers together; with more of them each waits longer.
_MESSAGES_PER_S = 200.0
#: A viewer who reads so slowly that so many events wait is disconnected; it may return with its
#: Last-Event-ID.
_BACKLOG = 2000
_RETRY_S = 1.0


@dataclass(frozen=True)
class EventBatch:
    """Events that are sent together; none stand for a pause (send a keep-alive)."""

    events: Sequence[JobEvent] = ()

    @cached_property
    def text(self) -> bytes:
        """As server-sent events, made once for all viewers."""
        return "".join(
            f"id: {event.id}\nevent: {event.type}\ndata: {json.dumps(event.data)}\n\n"
            for event in self.events
        ).encode()

    @property
    def last(self) -> bool:
        """Whether the job has ended with this."""
        return bool(self.events) and self.events[-1].last

    def behind(self, seen: tuple[int, int]) -> EventBatch:
        """Those of the events that come after ``seen``."""
        if not self.events or self.events[0].order > seen:
            return self
        return EventBatch([event for event in self.events if event.order > seen])


@dataclass(eq=False)
class _Link:
    """A batch in the chain of a job. ``number``: events up to here; ``certain``: told whatever a
    viewer has seen; ``over``: viewers are to leave."""

    number: int = 0
    batch: EventBatch = field(default_factory=EventBatch)
    certain: bool = False
    over: bool = False
    following: _Link | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class _Watch:
    """A job that somebody follows; ``last`` is the id read last, None until that is known."""

    end: _Link = field(default_factory=_Link)
    followers: int = 0
    glances: set[Glance] = field(default_factory=set)
    last: str | None = None
    #: Read and not handed out yet; when the last batch was.
    fresh: list[JobEvent] = field(default_factory=list)
    told: float = field(default_factory=time.monotonic)

    def hand_out(self, batch: EventBatch, *, certain: bool = False, over: bool = False) -> None:
        """Wake all followers, once."""
        link = _Link(self.end.number + len(batch.events), batch, certain, over)
        self.end.following, before, self.end = link, self.end, link
        before.arrived.set()
        self.told = time.monotonic()


class Glance:
    """Which of several jobs had events since the last look; ``EventHub.glance`` makes them."""

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub
        self._watches: dict[str, _Watch] = {}
        self._woken = asyncio.Event()
        self._changed: set[str] = set()
        self.closed = False

    def wake(self, *job_ids: str) -> None:
        """End the wait; these have changed."""
        self._changed.update(job_ids)
        self._woken.set()

    async def turn_to(self, job_ids: Collection[str]) -> None:
        """Watch these jobs and no others. New ones count as changed: what happened to them before
        this may not be known yet."""
        self._leave(self._watches.keys() - job_ids)
        added = [job_id for job_id in job_ids if job_id not in self._watches]
        if added:
            self._watches |= {job_id: self._hub.watch(job_id) for job_id in added}
            for job_id in added:
                self._watches[job_id].glances.add(self)
            await self._hub.begin({job_id: self._watches[job_id] for job_id in added})
            self.wake(*added)

    def leave(self) -> None:
        """Watch nothing any more."""
        self._leave([*self._watches])

    def _leave(self, job_ids: Collection[str]) -> None:
        for job_id in job_ids:
            watch = self._watches.pop(job_id)
            watch.glances.discard(self)
            self._hub.drop_unwatched(job_id, watch)

    async def changes(self, wait_s: float) -> set[str]:
        """The jobs that had events, as soon as there are any; none after ``wait_s`` seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), max(0.0, wait_s))
        self._woken.clear()
        changed, self._changed = self._changed, set()
        return changed


class EventHub:
    """One per process, used from its event loop only."""

    def __init__(self, log: EventLog, store: Store, *, quiet_s: float, max_viewers: int) -> None:
        self._log = log
        self._store = store
        self._quiet_s = quiet_s
        self._max_viewers = max_viewers
        self._watches: dict[str, _Watch] = {}
        self._reader: asyncio.Task[None] | None = None
        self.viewers = 0

    @property
    def pause_s(self) -> float:
        """The shortest time between two messages to one viewer: longer, the more there are."""
        return max(_TOGETHER_S, self.viewers / _MESSAGES_PER_S)

    def check_room(self) -> None:
        """Raises TooManyRequests where no viewer more is let in."""
        if self.viewers >= self._max_viewers:
            raise TooManyRequests("too many streams of events are open", retry_after_s=5)

    @contextmanager
    def viewer(self) -> Iterator[None]:
        """Count somebody whose stream is open."""
        self.viewers += 1
        try:
            yield
        finally:
            self.viewers -= 1

    async def follow(self, state: JobState, after: str) -> AsyncGenerator[EventBatch] | None:
        """All events of the job behind the id ``after``, in their order, until it has ended.

        An empty batch stands for a pause without any (send a keep-alive). Returns None where the
        job has ended and no event follows. Raises RedisError, TooManyRequests.
        """
        self.check_room()
        if state.status in TERMINAL:
            missed = await to_thread.run_sync(self._log.after, state.submission.id, after)
            if not missed and EventLog.order(after)[0]:
                return None
            ending = [] if missed and missed[-1].last else [_ending(state)]
            return _only(EventBatch([*missed, *ending]))
        return self._events(state.submission.id, after)

    async def _events(self, job_id: str, after: str) -> AsyncGenerator[EventBatch]:
        # Take a place in the chain first, then read earlier events: none is lost between the two.
        watch = self.watch(job_id)
        watch.followers += 1
        link, seen = watch.end, EventLog.order(after)
        try:
            with self.viewer():
                missed: list[JobEvent] | None = None
                while missed is None:
                    try:
                        missed = await to_thread.run_sync(self._log.after, job_id, after)
                    except RedisError as error:
                        _log.warning("events wait for Redis: %s", error)
                        yield EventBatch()
                        await asyncio.sleep(_RETRY_S)
                if watch.last is None:
                    watch.last = missed[-1].id if missed else _id_or_start(after)
                self._start_reader()
                if missed:
                    seen = missed[-1].order
                    yield EventBatch(missed)
                    if missed[-1].last:
                        return
                while True:
                    if link.following is None:
                        await link.arrived.wait()
                        continue
                    link = link.following
                    if link.over or watch.end.number - link.number >= _BACKLOG:
                        return
                    batch = link.batch if link.certain else link.batch.behind(seen)
                    if link.batch.events and not batch.events:
                        continue
                    if batch.events:
                        seen = max(seen, batch.events[-1].order)
                    yield batch
                    if batch.last:
                        return
        finally:
            watch.followers -= 1
            self.drop_unwatched(job_id, watch)

    @contextmanager
    def glance(self) -> Iterator[Glance]:
        """For somebody who only wants to know which of several jobs have changed."""
        glance = Glance(self)
        try:
            yield glance
        finally:
            glance.leave()

    def watch(self, job_id: str) -> _Watch:
        """What is known of a job that somebody follows."""
        return self._watches.setdefault(job_id, _Watch())

    def drop_unwatched(self, job_id: str, watch: _Watch) -> None:
        """Forget the job if nobody follows it any more."""
        if not (watch.followers or watch.glances) and self._watches.get(job_id) is watch:
            del self._watches[job_id]

    async def begin(self, watches: dict[str, _Watch]) -> None:
        """Read events of these jobs from now on, unless they are being read already."""
        new = sorted(job_id for job_id, watch in watches.items() if watch.last is None)
        try:
            newest = await to_thread.run_sync(self._log.newest, new) if new else {}
        except RedisError as error:
            _log.warning("events wait for Redis: %s", error)
            newest = {}
        for job_id, watch in watches.items():
            if watch.last is None:
                watch.last = newest.get(job_id, "0-0")
        self._start_reader()

    def _start_reader(self) -> None:
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        """The shared reader; it ends when the last viewer leaves. Whatever else ends it sends all
        viewers away: they may return."""
        try:
            while self._watches:
                after = {job: watch.last for job, watch in self._watches.items() if watch.last}
                try:
                    found = await to_thread.run_sync(self._log.read, after)
                except RedisError as error:
                    _log.warning("events wait for Redis: %s", error)
                    found = {}
                    await asyncio.sleep(_RETRY_S)
                for job_id, events in found.items():
                    watch = self._watches.get(job_id)
                    if watch is None or watch.last != after[job_id] or not events:
                        continue
                    watch.last = events[-1].id
                    watch.fresh += events
                    for glance in watch.glances:
                        glance.wake(job_id)
                await self._hand_out()
                await asyncio.sleep(_LOOK_S)
        finally:
            self._send_away()

    async def _hand_out(self) -> None:
        """Give every follower what has come, where it is due; an end is always due."""
        due = time.monotonic() - self.pause_s + _LOOK_S / 2
        quiet = time.monotonic() - self._quiet_s
        for job_id, watch in list(self._watches.items()):
            if not watch.followers:
                watch.fresh = []  # whoever comes later reads it from the stream
            elif watch.fresh and (watch.fresh[-1].last or watch.told <= due):
                watch.fresh, events = [], watch.fresh
                watch.hand_out(EventBatch(events))
            elif not watch.fresh and watch.told <= quiet:
                await self._keep_alive(job_id, watch)

    async def _keep_alive(self, job_id: str, watch: _Watch) -> None:
        """Say that nothing happened; or that the job has ended, of which the stream says nothing
        where Redis lost it: the outcome on disk has the last word."""
        state = await to_thread.run_sync(outcome_state, self._store, job_id)
        if state is None:
            watch.hand_out(EventBatch())
            return
        # What the reader has not read yet comes before the end.
        rest: list[JobEvent] = []
        if watch.last is not None:
            with suppress(RedisError):
                rest = await to_thread.run_sync(self._log.after, job_id, watch.last)
        if rest:
            watch.last = rest[-1].id
            watch.hand_out(EventBatch(rest))
        if not (rest and rest[-1].last):
            watch.hand_out(EventBatch([_ending(state)]), certain=True)

    def _send_away(self) -> None:
        for watch in self._watches.values():
            watch.hand_out(EventBatch(), over=True)
            for glance in watch.glances:
                glance.closed = True
                glance.wake()

    async def close(self) -> None:
        """Disconnect every viewer."""
        if self._reader is not None:
            self._reader.cancel()
        self._send_away()


def _ending(state: JobState) -> JobEvent:
    moment = now() if state.finished_at is None else seconds(state.finished_at)
    return JobEvent(f"{int(moment * 1000)}-0", "status", {"status": state.status})


def _id_or_start(after: str) -> str:
    return after if EventLog.order(after)[0] else "0-0"


async def _only(batch: EventBatch) -> AsyncGenerator[EventBatch]:
    yield batch
