"""Following jobs: one reader per process asks Redis for all of its viewers.

The number of viewers does not change the number of round trips; each viewer waits on a queue in
memory. The events behind its ``Last-Event-ID`` are read from the job's stream when it connects.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Collection
from contextlib import suppress
from dataclasses import dataclass, field

from anyio import to_thread
from redis.exceptions import RedisError

from service.contract.ledger.event_stream import EventLog, JobEvent
from service.contract.ledger.ledger import JobState
from service.contract.outcomes import outcome_state
from service.contract.schemas.problems import TooManyRequests
from service.contract.schemas.submissions import TERMINAL
from service.contract.storage.store import Store
from service.contract.times import now, seconds

__all__ = ["EventHub"]

_log = logging.getLogger(__name__)

#: Seconds between two reads of new events while there are viewers.
_LOOK_S = 0.25
#: Seconds between two messages to one viewer: what happens in between comes together. Most of what
#: a viewer costs is the sending.
_TOGETHER_S = 0.5
#: A viewer with so many unread events is disconnected; it may return with its Last-Event-ID.
_BACKLOG = 2000

_Queue = asyncio.Queue[JobEvent | None]


@dataclass(eq=False)
class _Glance:
    """A viewer of several jobs, who only wants to know which of them have changed."""

    changed: set[str] = field(default_factory=set)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False


@dataclass
class _Watch:
    """A job that somebody follows; ``last`` is the id read last, None until that is known."""

    queues: set[_Queue] = field(default_factory=set)
    glances: set[_Glance] = field(default_factory=set)
    last: str | None = None


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

    async def follow(self, state: JobState, after: str) -> AsyncGenerator[list[JobEvent]] | None:
        """Events of the job behind the id ``after``, some at a time, until it has ended.

        No events stand for a pause without any (send a keep-alive). Returns None where the job has
        ended and no event follows. Raises RedisError, TooManyRequests.
        """
        if self.viewers >= self._max_viewers:
            raise TooManyRequests("too many streams of events are open", retry_after_s=5)
        if state.status in TERMINAL:
            missed = await to_thread.run_sync(self._log.after, state.submission.id, after)
            if not missed and EventLog.order(after)[0]:
                return None
            return _finished([*missed, *([] if missed and missed[-1].last else [_ending(state)])])
        return self._events(state.submission.id, after)

    async def _events(self, job_id: str, after: str) -> AsyncGenerator[list[JobEvent]]:
        queue: _Queue = asyncio.Queue(_BACKLOG)
        # Subscribe first, then read the earlier events: none is lost between the two.
        watch = self._watches.setdefault(job_id, _Watch())
        watch.queues.add(queue)
        self.viewers += 1
        try:
            missed = await self._missed(job_id, after)
            if watch.last is None:
                watch.last = missed[-1].id if missed else _id_or_start(after)
            if self._reader is None or self._reader.done():
                self._reader = asyncio.create_task(self._read())
            seen = EventLog.order(after)
            sent = 0.0
            found: list[JobEvent | None] = [*missed]
            while True:
                fresh = [event for event in found if event is not None and event.order > seen]
                if fresh:
                    seen, sent = fresh[-1].order, time.monotonic()
                    yield fresh
                if (fresh and fresh[-1].last) or None in found:
                    return
                try:
                    found = [await asyncio.wait_for(queue.get(), self._quiet_s)]
                except TimeoutError:
                    ended = await self._ended(job_id)
                    if ended is None:
                        yield []
                        found = []
                        continue
                    # What the reader has not handed out yet comes before the end.
                    rest = await self._missed(job_id, f"{seen[0]}-{seen[1]}")
                    yield rest if rest and rest[-1].last else [*rest, ended]
                    return
                await asyncio.sleep(max(0.0, sent + _TOGETHER_S - time.monotonic()))
                while not queue.empty():
                    found.append(queue.get_nowait())
        finally:
            self.viewers -= 1
            watch.queues.remove(queue)
            self._drop_unwatched(job_id, watch)

    async def changes(
        self, job_ids: Collection[str], *, pause_s: float
    ) -> AsyncGenerator[set[str]]:
        """Which of the jobs had events since the last time; an empty set after a pause without any.

        The first set is all of them: what the viewer knows of them may be older than this. However
        many jobs, it is one viewer. Raises TooManyRequests.
        """
        if self.viewers >= self._max_viewers:
            raise TooManyRequests("too many streams of events are open", retry_after_s=5)
        glance = _Glance(changed={*job_ids})
        glance.woken.set()
        watches = {job_id: self._watches.setdefault(job_id, _Watch()) for job_id in job_ids}
        for watch in watches.values():
            watch.glances.add(glance)
        self.viewers += 1
        try:
            try:
                newest = await to_thread.run_sync(self._log.newest, sorted(watches))
            except RedisError as error:
                _log.warning("events wait for Redis: %s", error)
                newest = {}
            for job_id, watch in watches.items():
                if watch.last is None:
                    watch.last = newest.get(job_id, "0-0")
            if watches and (self._reader is None or self._reader.done()):
                self._reader = asyncio.create_task(self._read())
            while not glance.closed:
                with suppress(TimeoutError):
                    await asyncio.wait_for(glance.woken.wait(), pause_s)
                glance.woken.clear()
                changed, glance.changed = glance.changed, set()
                yield changed
        finally:
            self.viewers -= 1
            for job_id, watch in watches.items():
                watch.glances.discard(glance)
                self._drop_unwatched(job_id, watch)

    def _drop_unwatched(self, job_id: str, watch: _Watch) -> None:
        if not (watch.queues or watch.glances) and self._watches.get(job_id) is watch:
            del self._watches[job_id]

    async def _missed(self, job_id: str, after: str) -> list[JobEvent]:
        try:
            return await to_thread.run_sync(self._log.after, job_id, after)
        except RedisError as error:
            _log.warning("events wait for Redis: %s", error)
            return []  # the shared reader begins at the same place

    async def _ended(self, job_id: str) -> JobEvent | None:
        """The last event of a job whose stream is lost, from its outcome on disk."""
        state = await to_thread.run_sync(outcome_state, self._store, job_id)
        return None if state is None else _ending(state)

    async def _read(self) -> None:
        """The shared reader; it ends when the last viewer leaves."""
        while self._watches:
            after = {job: watch.last for job, watch in self._watches.items() if watch.last}
            try:
                found = await to_thread.run_sync(self._log.read, after)
            except RedisError as error:
                _log.warning("events wait for Redis: %s", error)
                found = {}
                await asyncio.sleep(1.0)
            for job_id, events in found.items():
                watch = self._watches.get(job_id)
                if watch is None or watch.last != after[job_id] or not events:
                    continue
                watch.last = events[-1].id
                for queue in list(watch.queues):
                    self._hand_out(queue, events)
                for glance in watch.glances:
                    glance.changed.add(job_id)
                    glance.woken.set()
            await asyncio.sleep(_LOOK_S)

    @staticmethod
    def _hand_out(queue: _Queue, events: list[JobEvent]) -> None:
        if queue.qsize() + len(events) < _BACKLOG:
            for event in events:
                queue.put_nowait(event)
        else:
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(None)

    async def close(self) -> None:
        """Disconnect every viewer."""
        for watch in self._watches.values():
            for queue in watch.queues:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(None)
            for glance in watch.glances:
                glance.closed = True
                glance.woken.set()
        if self._reader is not None:
            self._reader.cancel()


def _ending(state: JobState) -> JobEvent:
    moment = now() if state.finished_at is None else seconds(state.finished_at)
    return JobEvent(f"{int(moment * 1000)}-0", "status", {"status": state.status})


def _id_or_start(after: str) -> str:
    return after if EventLog.order(after)[0] else "0-0"


async def _finished(events: list[JobEvent]) -> AsyncGenerator[list[JobEvent]]:
    yield events
