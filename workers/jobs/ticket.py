"""The name of RQ's message, ``workers.jobs.ticket.run``: part of the data in Redis, never renamed.

APIs and queues of every version ask for work by this name; what it does is in
``workers.jobs.work_loop``.
"""

from workers.jobs.work_loop import run

__all__ = ["run"]
