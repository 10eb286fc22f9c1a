"""Signs the report of every job that succeeds: once, in an API process, never in a worker."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from service.access.signing_key import SigningKeys
from service.contract.outcomes import outcome_state
from service.contract.schemas.problems import InternalError, Problem
from service.contract.storage.store import Store
from service.contract.sweeps import runs_of
from service.reports.signing import UnreadableReport, sign

__all__ = ["ReportSigner"]

_log = logging.getLogger(__name__)


class ReportSigner:
    """``signed`` gives a job's signed report; ``attend`` signs what has ended meanwhile."""

    def __init__(self, store: Store, keys: SigningKeys) -> None:
        self._store = store
        self._keys = keys
        self._active: set[str] = set()

    def signed(self, job_id: str) -> Path | None:
        """The signed report, made if it is not there yet; None if the job has no report.

        Of several processes one creates it, and its signature stays: a key that changes later
        changes no report. Raises StorageFull, InternalError.
        """
        path = self._store.signed_report_path(job_id)
        if self._store.has(path):
            return path
        report = self._store.read_json(self._store.report_path(job_id))
        if report is None:
            return None
        try:
            signed = sign(report, self._keys.private())
        except UnreadableReport as error:
            raise InternalError(
                f"the report of job {job_id} cannot be signed: {error}", code="report_unsignable"
            ) from error
        self._store.create_json(path, signed)
        return path

    def attend(self, active: Collection[str]) -> None:
        """``active``: the jobs that have not ended. Signs the reports of those that just have.

        What a crash leaves unsigned is signed when it is first asked for.
        """
        ended = self._active - set(active)
        self._active = set(active)
        for job_id in sorted(ended):
            try:
                state = outcome_state(self._store, job_id)
                if state is not None and state.status == "succeeded":
                    for run in runs_of(state.submission):
                        self.signed(run.id)
                    self.signed(job_id)  # of a cascade, and signed already where it is the run
            except Problem as problem:
                _log.warning("the report of job %s cannot be signed yet: %s", job_id, problem)
