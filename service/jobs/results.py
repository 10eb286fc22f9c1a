"""What a finished job left: its report, its rows, its pictures. Only reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from service.access.keys import Caller
from service.contract.ledger.ledger import JobState
from service.contract.schemas.job_records import Pareto
from service.contract.schemas.problems import Conflict, NotFound
from service.contract.schemas.report import (
    EpsilonResult,
    RadiusSummary,
    Report,
    ReportDataset,
    ReportModel,
    Threat,
)
from service.contract.storage.pictures import COUNTEREXAMPLES, THUMBNAILS, read_picture
from service.contract.storage.store import Store
from service.contract.sweeps import cascade_of, sweep_of
from service.jobs.control import Jobs
from service.jobs.report_signer import ReportSigner
from service.jobs.sweeps import comparison, pareto

__all__ = ["PictureOf", "Results"]

PictureOf = Literal["sample", "counterexample", "difference"]
_KINDS: tuple[PictureOf, ...] = ("sample", "counterexample", "difference")
#: Counterexamples that a report shows.
_SHOWN = 6


class Results:
    """One per process; every method asks first whether the job is the caller's."""

    def __init__(self, jobs: Jobs, store: Store, signer: ReportSigner) -> None:
        self._jobs = jobs
        self._signer = signer
        self._store = store

    def finished(self, job_id: str, caller: Caller) -> JobState:
        """The job, which has a report. Raises NotFound, Conflict."""
        state = self._certified(job_id, caller)
        if cascade_of(state.submission) is not None:
            raise NotFound(
                "a cascade has a report for each of its stages",
                code="no_report",
                hint=f"GET /jobs/{job_id} lists them as models, GET /jobs/{job_id}/cascade says "
                "what they come to together",
            )
        if sweep_of(state.submission) is not None:
            raise NotFound(
                "a sweep has a report for each of its models",
                code="no_report",
                hint=f"GET /jobs/{job_id} lists them as models, GET /jobs/{job_id}/pareto compares "
                "them (.json, .svg, .html)",
            )
        return state

    def _certified(self, job_id: str, caller: Caller) -> JobState:
        """The job, which has succeeded with a certification. Raises NotFound, Conflict."""
        state = self._jobs.visible(job_id, caller)
        if state.status in ("failed", "cancelled"):
            why = (state.error or {}).get("detail", "it was asked for")
            raise Conflict(f"the job is {state.status}: {why}", code="no_report")
        if state.status != "succeeded":
            raise Conflict(
                f"the job is {state.status}",
                code="not_finished",
                hint=f"GET /jobs/{job_id}?wait=60",
            )
        if not state.submission.spec:
            raise NotFound(
                "this training was asked for without a certification",
                code="no_report",
                hint='POST /certify with its model_id, or train without "certify": null',
            )
        return state

    def samples_path(self, job_id: str, caller: Caller) -> Path:
        """The file of the sample rows. Raises NotFound, Conflict."""
        self.finished(job_id, caller)
        path = self._store.samples_path(job_id)
        self._store.has(path)
        return path

    def certificate_path(self, job_id: str, caller: Caller) -> Path:
        """The file of the certificate. Raises NotFound, Conflict."""
        self.finished(job_id, caller)
        path = self._store.certificate_path(job_id)
        if not self._store.has(path):
            raise NotFound(
                "this job has no certificate",
                code="no_certificate",
                hint="there is one for sound results by `lipschitz` and `ibp` on a chain of dense "
                "layers, convolutions, average pools, ReLU and MaxMin; certserve verify-report "
                "--recheck certifies rows of any report again",
            )
        return path

    def report_path(self, job_id: str, caller: Caller) -> Path:
        """The file of the signed report. Raises NotFound, Conflict, StorageFull."""
        self.finished(job_id, caller)
        path = self._signer.signed(job_id)
        if path is None:
            raise NotFound("this job has no report", code="no_report")
        return path

    def report(self, job_id: str, caller: Caller) -> dict[str, Any]:
        """The report, with defaults for what it is too old to say. Raises NotFound, Conflict."""
        found = _filled(Report, json.loads(self.report_path(job_id, caller).read_bytes()))
        parts: dict[str, type[BaseModel]] = {
            "model": ReportModel,
            "dataset": ReportDataset,
            "threat": Threat,
            "radius": RadiusSummary,
        }
        for name, kind in parts.items():
            found[name] = None if found.get(name) is None else _filled(kind, found[name])
        found["results"] = [_filled(EpsilonResult, row) for row in found["results"]]
        return found

    def pareto(self, job_id: str, epsilon: str | None, caller: Caller) -> Pareto:
        """The models of a sweep compared. Raises NotFound, Conflict, InvalidInput."""
        state = self._jobs.visible(job_id, caller)
        return pareto(self._store, state, lambda run: self.report(run, caller), epsilon)

    def sweep(self, job_id: str, epsilon: str | None, caller: Caller) -> dict[str, Any]:
        """The same, and what the page of a sweep tells of its models. Raises the same."""
        state = self._jobs.visible(job_id, caller)
        return comparison(self._store, state, lambda run: self.report(run, caller), epsilon)

    def cascade_path(self, job_id: str, caller: Caller) -> Path:
        """The file of a cascade's signed report. Raises NotFound, Conflict, StorageFull."""
        state = self._certified(job_id, caller)
        path = None if cascade_of(state.submission) is None else self._signer.signed(job_id)
        if path is None:
            raise NotFound("this job is not a cascade of networks", code="no_cascade")
        return path

    def picture(self, job_id: str, index: int, of: PictureOf, caller: Caller) -> bytes:
        """A small PNG of the sample at a place in the data set, as a worker made it.

        Raises NotFound where there is none: the samples are no pictures, or they are too many.
        """
        self._jobs.visible(job_id, caller)
        found = self._picture(job_id, index, of)
        if found is None:
            raise NotFound(f"there is no picture of sample {index}", code="no_picture")
        return found

    def _picture(self, job_id: str, index: int, of: PictureOf) -> bytes | None:
        if of == "sample":
            path, number = self._store.prepared_dir(job_id) / THUMBNAILS, index
        else:
            path = self._counterexamples(job_id)
            number = 2 * index + (of == "difference")
        return read_picture(path, number) if self._store.has(path) else None

    def counterexamples(self, rows: Path, job_id: str, caller: Caller) -> list[dict[str, Any]]:
        """The first few samples with a counterexample, and their pictures; none without any.

        ``falsified``: at which epsilons; the picture is of the smallest of them.
        """
        found: list[dict[str, Any]] = []
        if not self._store.has(self._counterexamples(job_id)):
            return found
        with rows.open("rb") as file:
            for line in file:
                row = json.loads(line)
                if not any(row["falsified"]):
                    continue
                shown: dict[str, Any] = {
                    of: self._picture(job_id, row["index"], of) for of in _KINDS
                }
                if shown["sample"] is None or shown["counterexample"] is None:
                    break
                told = ("index", "label", "falsified")
                found.append({name: row[name] for name in told} | shown)
                if len(found) == _SHOWN:
                    break
        return found

    def _counterexamples(self, job_id: str) -> Path:
        return self._store.counterexamples_path(job_id).with_name(COUNTEREXAMPLES)

    def training(self, job_id: str, caller: Caller) -> dict[str, Any] | None:
        """Plan and history of a training; None for another job."""
        plan = self._jobs.visible(job_id, caller).submission.training
        return None if plan is None else {"plan": plan, "history": self.history(job_id)}

    def history(self, job_id: str) -> list[dict[str, Any]]:
        """A row per epoch of a training so far; the caller has been checked."""
        rows = self._store.read_json(self._store.training_dir(job_id) / "history.json")
        return [] if rows is None else list(rows["history"])


def _filled(kind: type[BaseModel], value: dict[str, Any]) -> dict[str, Any]:
    fields = kind.model_fields.items()
    defaults = {
        field.alias or name: field.get_default(call_default_factory=True)
        for name, field in fields
        if not field.is_required()
    }
    return {**defaults, **value}
