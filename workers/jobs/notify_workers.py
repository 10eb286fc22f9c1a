"""A horse that has just cut a job into shards rings for the other workers itself.

The reconciler would do so within seconds; a worker that could have begun meanwhile is what makes
two workers less than twice as fast as one.
"""

from __future__ import annotations

import secrets

from rq import Queue, get_current_job

from service.contract.ledger.ledger import Ledger

__all__ = ["notify_workers"]


def notify_workers(ledger: Ledger, job_id: str, items: int) -> None:
    """Ask the other workers for as many hands as there are items; outside of RQ nothing happens.

    Raises RedisError. Too many tickets cost a glance each.
    """
    own = get_current_job()
    hands = min(items, len(ledger.worker_registry.living())) - 1
    if own is None or hands < 1:
        return
    queue = Queue(own.origin, connection=own.connection, serializer="json")
    tickets = [
        Queue.prepare_data(
            own.func_name,
            args=[job_id],
            timeout=own.timeout,
            result_ttl=0,
            failure_ttl=60,
            description="",
            job_id=f"{job_id}-{secrets.token_hex(4)}",
        )
        for _ in range(hands)
    ]
    queue.enqueue_many(tickets)
