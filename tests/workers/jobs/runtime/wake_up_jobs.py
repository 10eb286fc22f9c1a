"""What a worker finds in its queue."""

from __future__ import annotations

from rq import Queue
from rq.job import Job

from service.contract.ledger.connection import connect
from service.contract.schemas.submissions import JobSubmission
from tests.workers.jobs.conftest import Corridor


def enqueue(corridor: Corridor, function: str, *arguments: object) -> Job:
    """Put a call of any function into the queue."""
    connection = connect(corridor.settings, text=False)
    queue = Queue(corridor.settings.queue_name, connection=connection, serializer="json")
    return queue.enqueue_call(function, args=arguments, timeout=900, result_ttl=0, failure_ttl=60)


def wake_up(corridor: Corridor, job: JobSubmission) -> Job:
    """Put the wake-up job of ``job`` into the queue."""
    return enqueue(corridor, "workers.jobs.ticket.run", job.id)
