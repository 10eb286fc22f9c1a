"""The name of RQ's message, ``workers.jobs.ticket.run``: part of the data in Redis, never renamed.

The API and the queues of every release send wake-up jobs with this name;
``workers.jobs.work_loop`` does the work.
"""

from workers.jobs.work_loop import run

__all__ = ["run"]
