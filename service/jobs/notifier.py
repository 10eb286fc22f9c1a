"""The doorbell: RQ tickets that ask for a worker. The only module of the API that imports rq.

A ticket says "work is waiting for job J" and nothing else; losing one costs seconds (the
reconciler rings again), doubling one costs a glance at the ledger.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections import Counter
from typing import cast

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue

from service.contract.settings import Settings

__all__ = ["WAKE_UP", "Notifier"]

_log = logging.getLogger(__name__)

#: The one function a worker runs, by name: the API never imports it.
WAKE_UP = "workers.jobs.ticket.run"

_JOB_ID_LENGTH = 26
#: A ticket ends by itself after ticket_budget_s, but not in the middle of an item, and one item
#: may take hours on a CPU. Leases tell of lost workers; RQ's clock is only a last resort.
_GRACE_S = 6 * 3600
_AT_ONCE = 500
#: Any ticket serves any job: where so many wait, one more brings nobody. More workers than that are
#: the reconciler's business.
_PLENTY = 64
#: Tickets of so long go out together.
_PAUSE_S = 0.02


class Notifier:
    """Rings from a thread of its own, many tickets in one round trip.

    ``redis`` must not decode responses and must be nobody else's: RQ changes its pool.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._queue = Queue(settings.queue_name, connection=redis, serializer="json")
        self._timeout = int(settings.ticket_budget_s) + _GRACE_S
        self._wanted: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
        self._thread.start()

    def notify(self, job_id: str) -> None:
        """Ask for a worker, unless many are asked for already; returns at once."""
        self._wanted.put(job_id)

    def waiting(self) -> Counter[str]:
        """How many tickets of each job nobody has taken yet. Raises RedisError."""
        tickets = cast(list[bytes], self._redis.lrange(self._queue.key, 0, -1))
        return Counter(ticket.decode()[:_JOB_ID_LENGTH] for ticket in tickets)

    def close(self) -> None:
        """Ring what waits and stop."""
        self._wanted.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            jobs = [self._wanted.get()]
            while len(jobs) < _AT_ONCE and not self._wanted.empty():
                jobs.append(self._wanted.get())
            try:
                self._enqueue([job for job in jobs if job is not None])
            except RedisError as error:
                _log.warning("%d tickets were not rung: %s", len(jobs), error)
            except Exception:  # noqa: BLE001 - an outermost loop, and the reconciler rings again
                _log.exception("%d tickets were not rung", len(jobs))
            if None in jobs:
                return
            time.sleep(_PAUSE_S)

    def _enqueue(self, job_ids: list[str]) -> None:
        if not job_ids:
            return
        # The jobs are in the ledger by now, so every ticket that waits will find them.
        room = max(0, _PLENTY - int(self._redis.llen(self._queue.key)))
        tickets = [
            Queue.prepare_data(
                WAKE_UP,
                args=[job_id],
                timeout=self._timeout,
                result_ttl=0,
                failure_ttl=60,
                description="",
                job_id=f"{job_id}-{secrets.token_hex(4)}",
            )
            for job_id in job_ids[:room]
        ]
        if tickets:
            self._queue.enqueue_many(tickets)
