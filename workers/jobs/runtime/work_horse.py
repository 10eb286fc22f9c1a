"""The process that performs one wake-up job: forked from the worker's template, dies with it.

Without a template it is a fresh interpreter (``python -m workers.jobs.runtime.work_horse``).

Anybody who can write to Redis can put a message on the queue. So only the function on the list
below is called, its only argument is a job id, and nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import NoReturn

from rq import Queue
from rq.executions import Execution
from rq.job import Job
from rq.serializers import DefaultSerializer

from service.contract.ids import is_job_id
from service.contract.processes import die_with_parent
from service.contract.settings import Settings
from service.contract.wake_ups import WAKE_UP
from workers.jobs.inspection import sandbox
from workers.jobs.runtime import held_lease
from workers.jobs.runtime.fork_server import ForkServer
from workers.jobs.runtime.worker import CertificationWorker, rq_connection

__all__ = [
    "ALLOWED_FUNCTIONS",
    "MessageRefused",
    "check_message",
    "forked",
    "main",
    "refuse_pickle",
]

#: The functions that a message on the queue may name.
ALLOWED_FUNCTIONS = frozenset({WAKE_UP})


class MessageRefused(RuntimeError):
    """A message on the queue that is not a wake-up job."""

    code = "ticket_refused"


def refuse_pickle() -> None:
    """Make RQ's fallback serializer raise: some of its code paths use it silently."""

    def loads(data: bytes) -> NoReturn:
        raise MessageRefused("Redis returned a pickled value, which is refused")

    DefaultSerializer.loads = staticmethod(loads)


def check_message(job: Job) -> None:
    """Raise MessageRefused unless the message is ``workers.jobs.ticket.run(job_id)``."""
    if job.func_name not in ALLOWED_FUNCTIONS:
        raise MessageRefused(f"function {job.func_name!r} is not on the list of allowed ones")
    if job.instance is not None or job.kwargs or len(job.args) != 1:
        raise MessageRefused("a wake-up job has one argument, the job id")
    if not isinstance(job.args[0], str) or not is_job_id(job.args[0]):
        raise MessageRefused("a wake-up job's argument must be a job id")


def main(arguments: Sequence[str] | None = None) -> None:
    """Perform one wake-up job. Arguments: worker name, the wake-up job's id, queue, execution id,
    parent's pid."""
    name, message_id, queue_name, execution_id, parent = arguments or sys.argv[1:]
    die_with_parent(int(parent))
    refuse_pickle()
    connection = rq_connection(Settings())
    # Built anew rather than found by key: the key's hash may be gone if Redis lost its data.
    worker = CertificationWorker(
        [queue_name], name=name, connection=connection, prepare_for_work=False
    )
    job = Job.fetch(message_id, connection=connection, serializer=worker.serializer)
    check_message(job)
    queue = Queue(queue_name, connection=connection, serializer=worker.serializer)
    worker.execution = Execution.fetch(execution_id, job.id, connection=connection)
    worker.main_work_horse(job, queue)


def forked(arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    """In a new child of the template: ``main``, with the worker's environment.

    ``descriptors``: files in memory with the environment and the held lease. Before the environment
    is read, a second fork server is forked for the inspections, so that it never has the secrets.
    """
    sealed, note = descriptors
    sandbox.fork_from(ForkServer.beside("inspections", closing=descriptors))
    environment: Mapping[str, str] = json.loads(os.pread(sealed, os.fstat(sealed).st_size, 0))
    os.close(sealed)
    os.environ.clear()
    os.environ.update({**environment, held_lease.VARIABLE: str(note)})
    tempfile.tempdir = None
    main([*arguments, str(os.getppid())])
    return 0


if __name__ == "__main__":
    main()
