"""One action on all jobs of a filter, once it is clear how many they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from anyio import to_thread
from pydantic import Field

from service.access.keys import Caller
from service.contract.ledger.ledger import Ledger
from service.contract.schemas.problems import Conflict, InvalidInput, Problem
from service.contract.schemas.submissions import JobKind, JobStatus, Strict
from service.jobs.control import Jobs

__all__ = ["APPLIES_TO", "Bulk", "BulkAction", "BulkFilter", "BulkResult"]

BulkAction = Literal["cancel", "retry", "delete"]

#: The states of a job that each action is for.
APPLIES_TO: Mapping[str, tuple[JobStatus, ...]] = {
    "cancel": ("queued", "running"),
    "retry": ("failed", "cancelled"),
    "delete": ("succeeded", "failed", "cancelled"),
}
#: Jobs of one request, and how many of them are dealt with at a time.
_MOST = 10_000
_AT_ONCE = 16


class BulkFilter(Strict):
    """Which jobs: of a kind, in any of some states; what is left out means all."""

    kind: JobKind | None = Field(default=None, description="None: both.")
    status: list[JobStatus] = Field(
        default_factory=list, max_length=5, description="Any of these; none: all."
    )


@dataclass(frozen=True)
class BulkResult:
    """How many jobs were acted on, and what was refused: job id -> problem."""

    done: int
    refused: dict[str, dict[str, Any]]


class Bulk:
    """One per process."""

    def __init__(self, jobs: Jobs, ledger: Ledger) -> None:
        self._jobs = jobs
        self._ledger = ledger

    async def act(
        self, action: BulkAction, chosen: BulkFilter, expected: int, caller: Caller
    ) -> BulkResult:
        """Do ``action`` with the caller's jobs of the filter that are in a state for it.

        Raises Conflict where these are not ``expected`` many, InvalidInput where they are too many
        for one request. A job that cannot be acted on any more stands among the refused ones.
        """
        statuses = statuses_for(action, chosen)
        owner = None if caller.admin else caller.name
        ids: list[str] = []
        if statuses:
            ids = await to_thread.run_sync(
                lambda: self._ledger.index.ids(
                    kind=chosen.kind, statuses=statuses, owner=owner, before=None, limit=_MOST + 1
                )
            )
        if len(ids) > _MOST:
            raise InvalidInput(
                f"more than {_MOST} jobs are too many for one request",
                code="too_many_jobs",
                hint="narrow the filter",
                field="filter",
            )
        if len(ids) != expected:
            raise Conflict(
                f"there are {len(ids)} jobs to {action} now, not {expected}",
                code="count_changed",
                hint="look at the list again",
                field="expected_count",
            )
        acts: dict[str, Callable[[str, Caller], Awaitable[object]]] = {
            "cancel": self._jobs.cancel,
            "retry": self._jobs.retry,
            "delete": self._jobs.delete,
        }
        refused: dict[str, dict[str, Any]] = {}

        async def some(own: Iterator[str]) -> None:
            for job_id in own:
                try:
                    await acts[action](job_id, caller)
                except Problem as problem:
                    refused[job_id] = problem.to_dict()

        shared = iter(ids)
        await asyncio.gather(*(some(shared) for _ in range(min(_AT_ONCE, len(ids)))))
        return BulkResult(len(ids) - len(refused), refused)


def statuses_for(action: str, chosen: BulkFilter) -> list[JobStatus]:
    """The states of the filter that the action is for."""
    return [s for s in APPLIES_TO[action] if not chosen.status or s in chosen.status]
