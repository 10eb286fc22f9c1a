"""A client of the HTTP contract: submit, follow, download. Needs httpx, nothing of the service."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import httpx

__all__ = ["REPORT_FORMS", "Client", "Job", "JobFailed", "ServiceError"]

#: Forms of a report, as file names end.
REPORT_FORMS = ("json", "html", "csv", "svg")

#: States that a job never leaves.
ENDED = frozenset({"succeeded", "failed", "cancelled"})

#: How long to wait for a service that restarts.
PATIENCE_S = 60.0


class ServiceError(RuntimeError):
    """The service refused a request; ``problem`` is its problem details object."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        detail = problem.get("detail") or problem.get("title") or "no detail"
        hint = f" ({problem['hint']})" if problem.get("hint") else ""
        super().__init__(f"{problem.get('code', status)}: {detail}{hint}")
        self.status = status
        self.problem = dict(problem)
        self.code = str(problem.get("code", status))


class JobFailed(ServiceError):
    """A job ended without a report; ``job`` is its last record."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        problem = job.get("error") or {"code": job["status"], "detail": f"the job {job['status']}"}
        super().__init__(int(problem.get("status", 0)), problem)
        self.job = dict(job)


class Job(dict[str, Any]):
    """The record of a job as the service shows it, which knows how to go on:

    ``client.certify(model, data, spec).wait().report``.
    """

    def __init__(self, client: Client, record: Mapping[str, Any]) -> None:
        super().__init__(record)
        self._client = client

    @property
    def id(self) -> str:
        """The job's id."""
        return str(self["id"])

    def wait(
        self,
        *,
        on_progress: Callable[[dict[str, Any]], None] = lambda job: None,
        timeout_s: float | None = None,
    ) -> Job:
        """The record at the job's end. Raises JobFailed, TimeoutError."""
        return self._client.wait(self.id, on_progress=on_progress, timeout_s=timeout_s)

    @property
    def report(self) -> dict[str, Any]:
        """The report of a job that has succeeded. Raises ServiceError."""
        found: dict[str, Any] = json.loads(self._client.report(self.id))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """The rows per sample of a job that has succeeded. Raises ServiceError."""
        return self._client.rows(self.id)

    def cancel(self) -> Job:
        """Ask for the job to be cancelled."""
        return self._client.cancel(self.id)


class Client:
    """Talks to one service; a context manager. ``key`` is sent as a bearer token."""

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 60.0) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        url = url if "://" in url else f"http://{url}"
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Whether the service says that it can work."""
        try:
            return self._http.get("/readyz", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    def certify(
        self,
        model: Path | str,
        dataset: Path | str,
        spec: Mapping[str, Any],
        *,
        dataset_labels: Path | None = None,
        model_data: Sequence[Path] = (),
        force: bool = False,
        idempotency_key: str | None = None,
        webhook: str | None = None,
    ) -> Job:
        """Submit a certification; the job record.

        A ``Path`` is uploaded, a text is the id of an earlier upload or a registered name.
        ``model_data``: files in which an ONNX model keeps its tensors.
        ``force`` computes even where an equal result exists. The same ``idempotency_key`` gives the
        same job, so that a submission may be repeated. ``webhook`` is notified of the end.
        """
        fields: dict[str, str] = {"spec": json.dumps(spec)}
        if force:
            fields["force"] = "true"
        if webhook is not None:
            fields["webhook"] = webhook
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        uploads = {"model": model, "dataset": dataset, "dataset_labels": dataset_labels}
        return self._submit(uploads, fields, headers, model_data)

    def verify(
        self,
        model: Path | str,
        property_file: Path,
        spec: Mapping[str, Any] | None = None,
        *,
        model_data: Sequence[Path] = (),
        force: bool = False,
    ) -> Job:
        """Submit a VNN-LIB property of a model; the job record. ``spec``: how to verify it."""
        fields = {"spec": json.dumps(spec or {})}
        if force:
            fields["force"] = "true"
        return self._submit({"model": model, "property": property_file}, fields, {}, model_data)

    def _submit(
        self,
        uploads: Mapping[str, Path | str | None],
        fields: dict[str, str],
        headers: Mapping[str, str],
        model_data: Sequence[Path],
    ) -> Job:
        with ExitStack() as opened:
            files: list[tuple[str, tuple[str | None, Any]]] = []
            for name, what in uploads.items():
                if isinstance(what, Path):
                    files.append((name, (what.name, opened.enter_context(what.open("rb")))))
                elif what is not None:
                    fields[f"{name}_id"] = what
            for path in model_data:
                files.append(("model_data", (path.name, opened.enter_context(path.open("rb")))))
            # A form without a file would be sent url-encoded.
            answer = self._http.post(
                "/certify",
                data=fields,
                files=files or [("spec", (None, fields.pop("spec")))],
                headers=headers,
            )
        return self._job(answer)

    def train(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit a training (the body of POST /train); the job record."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return self._job(self._http.post("/train", json=dict(request), headers=headers))

    def training(self, job_id: str) -> dict[str, Any]:
        """Plan and curve of a training."""
        return self._json(self._http.get(f"/jobs/{job_id}/training"))

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        return self._job(self._http.get(f"/jobs/{job_id}"))

    def jobs(
        self,
        *,
        kind: str | None = None,
        status: str | Sequence[str] | None = None,
        limit: int = 50,
    ) -> dict[str, Any]:
        """The newest jobs: ``items``, and ``next_cursor``, which is null at the end.

        ``status``: one state, or several of which one must be the job's.
        """
        wish: dict[str, Any] = {"kind": kind, "status": status, "limit": limit}
        given = {name: value for name, value in wish.items() if value is not None}
        return self._json(self._http.get("/jobs", params=given))

    def records(
        self, collection: Literal["models", "datasets"], *, limit: int = 50
    ) -> dict[str, Any]:
        """The newest models or data sets, as ``jobs`` has jobs."""
        return self._json(self._http.get(f"/{collection}", params={"limit": limit}))

    def upload_model(self, file: Path, *, name: str | None = None) -> dict[str, Any]:
        """Upload a model; its record."""
        return self._upload("/models", {"model": file}, name)

    def upload_dataset(
        self, file: Path, *, name: str | None = None, labels: Path | None = None
    ) -> dict[str, Any]:
        """Upload a data set, with ``labels`` of an idx pair; its record."""
        files = {"dataset": file} | ({} if labels is None else {"dataset_labels": labels})
        return self._upload("/datasets", files, name)

    def _upload(self, path: str, files: Mapping[str, Path], name: str | None) -> dict[str, Any]:
        with ExitStack() as opened:
            sent = {
                field: (file.name, opened.enter_context(file.open("rb")))
                for field, file in files.items()
            }
            fields = {} if name is None else {"name": name}
            return self._json(self._http.post(path, data=fields, files=sent))

    def wait(
        self,
        job_id: str,
        *,
        on_progress: Callable[[dict[str, Any]], None] = lambda job: None,
        interval_s: float = 0.3,
        timeout_s: float | None = None,
    ) -> Job:
        """Follow a job to its end and return its record, also through a restart of the service.

        Raises JobFailed, TimeoutError.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last_answer = time.monotonic()
        while deadline is None or time.monotonic() < deadline:
            try:
                job = self.job(job_id)
            except (httpx.TransportError, ServiceError) as error:
                away = isinstance(error, httpx.TransportError) or error.status in (500, 502, 503)
                if not away or time.monotonic() - last_answer > PATIENCE_S:
                    raise
            else:
                last_answer = time.monotonic()
                on_progress(job)
                if job["status"] == "succeeded":
                    return job
                if job["status"] in ENDED:
                    raise JobFailed(job)
            time.sleep(interval_s)
        raise TimeoutError(f"job {job_id} has not ended within {timeout_s} s")

    def cancel(self, job_id: str) -> Job:
        """Ask for a job to be cancelled."""
        return self._job(self._http.post(f"/jobs/{job_id}/cancel"))

    def report(self, job_id: str, suffix: str = "json") -> bytes:
        """The report as ``json``, ``html``, ``csv`` or ``svg``."""
        answer = self._http.get(f"/jobs/{job_id}/report.{suffix}")
        self._check(answer)
        return answer.content

    def pareto(self, job_id: str, suffix: Literal["json", "html", "svg"] = "json") -> bytes:
        """The models of a sweep compared: clean over certified accuracy. Each of them has its own
        report, under the address that the job's ``models`` tell."""
        answer = self._http.get(f"/jobs/{job_id}/pareto.{suffix}")
        self._check(answer)
        return answer.content

    def cascade(self, job_id: str) -> bytes:
        """What the stages of a cascade of networks come to together, as JSON. Each of them has its
        own report, like the models of a sweep."""
        answer = self._http.get(f"/jobs/{job_id}/cascade")
        self._check(answer)
        return answer.content

    def rows_file(self, job_id: str) -> bytes:
        """The rows per sample as one file, one JSON object per line; the report has its sha256."""
        answer = self._http.get(f"/jobs/{job_id}/samples.jsonl")
        self._check(answer)
        return answer.content

    def rows(self, job_id: str) -> list[dict[str, Any]]:
        """The rows per sample."""
        return [json.loads(line) for line in self.rows_file(job_id).splitlines()]

    def certificate(self, job_id: str) -> bytes:
        """What ``certserve-check`` proves again; not every job has one."""
        answer = self._http.get(f"/jobs/{job_id}/certificate")
        self._check(answer)
        return answer.content

    def signing_keys(self) -> dict[str, Any]:
        """The public keys that the service signs reports with: ``public_key`` and ``former``."""
        return self._json(self._http.get("/keys/signing"))

    def training_chart(self, job_id: str) -> bytes:
        """The curve of a training as SVG."""
        answer = self._http.get(f"/jobs/{job_id}/training.svg")
        self._check(answer)
        return answer.content

    def model_file(self, model_id: str, part: str) -> bytes:
        """``onnx`` or ``weights`` of a model."""
        answer = self._http.get(f"/models/{model_id}/{part}")
        self._check(answer)
        return answer.content

    def _job(self, answer: httpx.Response) -> Job:
        return Job(self, self._json(answer))

    def _json(self, answer: httpx.Response) -> dict[str, Any]:
        self._check(answer)
        value: dict[str, Any] = answer.json()
        return value

    @staticmethod
    def _check(answer: httpx.Response) -> None:
        if answer.status_code < 400:
            return
        try:
            problem = answer.json()
        except ValueError:
            problem = {"detail": answer.text[:500]}
        raise ServiceError(answer.status_code, problem)
