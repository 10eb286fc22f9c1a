"""Wake-up jobs: RQ messages that ask for a worker. The only module of the API that imports rq.

A wake-up job says "work is waiting for job J" and nothing else. If one is lost, the reconciler
sends another within seconds; if one is doubled, a worker looks at the ledger once too often.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from typing import cast

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue

from service.contract.settings import Settings
from service.contract.wake_ups import WAKE_UP, wake_up

__all__ = ["Notifier"]

_log = logging.getLogger(__name__)

_JOB_ID_LENGTH = 26
#: A wake-up job ends by itself after ticket_budget_s, but not in the middle of an item, and one
#: item may take hours on a CPU. Lost workers are found by their leases; RQ's time-out is only the
#: last resort.
_GRACE_S = 6 * 3600
_AT_ONCE = 500
#: Stop notifying once so many wake-up jobs are queued: any of them serves any job, so one more
#: would not bring another worker. Where there are more workers, the reconciler sends more.
_PLENTY = 64
#: Wake-up jobs that are asked for within this time are sent together.
_PAUSE_S = 0.02


class Notifier:
    """Sends wake-up jobs from a thread of its own, many in one round trip.

    ``redis`` must not decode responses and must be used for nothing else: RQ changes its pool.
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
        """How many queued wake-up jobs there are for each job. Raises RedisError."""
        queued = cast(list[bytes], self._redis.lrange(self._queue.key, 0, -1))
        return Counter(message.decode()[:_JOB_ID_LENGTH] for message in queued)

    def close(self) -> None:
        """Send the wake-up jobs that wait, and stop."""
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
                _log.warning("%d wake-up jobs were not sent: %s", len(jobs), error)
            except Exception:  # noqa: BLE001 - an outermost loop; the reconciler notifies again
                _log.exception("%d wake-up jobs were not sent", len(jobs))
            if None in jobs:
                return
            time.sleep(_PAUSE_S)

    def _enqueue(self, job_ids: list[str]) -> None:
        if not job_ids:
            return
        # The jobs are in the ledger by now, so every wake-up job in the queue will find them.
        room = max(0, _PLENTY - int(self._redis.llen(self._queue.key)))
        wake_ups = [
            Queue.prepare_data(WAKE_UP, timeout=self._timeout, **wake_up(job_id))
            for job_id in job_ids[:room]
        ]
        if wake_ups:
            self._queue.enqueue_many(wake_ups)
