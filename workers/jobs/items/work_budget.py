"""The work that ``method: auto`` may do in one job, by effort."""

from __future__ import annotations

from service.contract.schemas.submissions import Spec

__all__ = ["WORK_PER_JOB", "work_of"]

#: Plain forward passes that the bounds of one ``auto`` job may cost altogether.
WORK_PER_JOB = {"quick": 2e6, "standard": 2e7, "exhaustive": 2e9}


def work_of(spec: Spec) -> float | None:
    """Forward passes that the bounds of the job may cost; None where time or one method limits it.

    Counted in work, not by a clock, so that the same job gives the same report everywhere.
    """
    limited = spec.method == "auto" and spec.time_budget_s is None
    return WORK_PER_JOB[spec.effort] if limited else None
