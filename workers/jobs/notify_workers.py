"""A work horse that has cut a job into shards notifies the other workers itself.

The reconciler would do so some seconds later, and the other workers would be idle until then.
"""

from __future__ import annotations

from rq import Queue, get_current_job

from service.contract.ledger.ledger import Ledger
from service.contract.wake_ups import WAKE_UP, wake_up

__all__ = ["notify_workers"]


def notify_workers(ledger: Ledger, job_id: str, items: int) -> None:
    """Send a wake-up job to each other worker, at most one per item; does nothing outside of RQ.

    Raises RedisError. A superfluous wake-up job costs one look at the ledger.
    """
    own = get_current_job()
    wanted = min(items, len(ledger.worker_registry.living())) - 1
    if own is None or wanted < 1:
        return
    queue = Queue(own.origin, connection=own.connection, serializer="json")
    wake_ups = [
        Queue.prepare_data(WAKE_UP, timeout=own.timeout, **wake_up(job_id)) for _ in range(wanted)
    ]
    queue.enqueue_many(wake_ups)
