"""The message on RQ's queue keeps its name, so that an older Redis and older workers are served."""

from __future__ import annotations

from rq.utils import import_attribute

from service.contract.wake_ups import WAKE_UP
from workers.jobs import work_loop
from workers.jobs.runtime.work_horse import ALLOWED_FUNCTIONS


def test_the_message_of_every_version_starts_the_work_loop() -> None:
    message = "workers.jobs.ticket.run"
    assert message == WAKE_UP
    assert {message} == ALLOWED_FUNCTIONS
    assert import_attribute(message) is work_loop.run
