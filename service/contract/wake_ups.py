"""The wake-up job: the RQ message by which the API, or a work horse, asks for a worker.

It says "work is waiting for job J" and nothing else. Both sides build it from here, with their own
``rq``; the worker refuses every other message.
"""

from __future__ import annotations

import secrets
from typing import Any

__all__ = ["WAKE_UP", "wake_up"]

#: The one function that a wake-up job names. It is a text, because the API cannot import workers;
#: it is never renamed, because queues of earlier releases hold it.
WAKE_UP = "workers.jobs.ticket.run"


def wake_up(job_id: str) -> dict[str, Any]:
    """Arguments of ``rq.Queue.prepare_data`` beside the function and the time-out.

    The message's id begins with the job's, so that queued ones can be counted by job.
    """
    return {
        "args": [job_id],
        "result_ttl": 0,
        "failure_ttl": 60,
        "description": "",
        "job_id": f"{job_id}-{secrets.token_hex(4)}",
    }
