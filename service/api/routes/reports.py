"""Results of a finished job: the report in four forms, sample rows, counterexamples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from service import reports
from service.access.keys import Caller
from service.api.auth import Principal
from service.api.middleware import DOCUMENT_HEADERS
from service.api.routes.jobs import Page
from service.api.services import Services, UsesServices
from service.contract.schemas.job_records import Pareto
from service.contract.schemas.problems import InvalidInput, NotAcceptable, NotFound
from service.contract.schemas.report import CascadeReport, SampleRow
from service.jobs.results import PictureOf

__all__ = ["router"]

router = APIRouter(tags=["results"])

Form = Literal["json", "html", "csv", "svg"]

#: Forms of a report and their media types; the first is the default.
_MEDIA_TYPES: dict[str, Form] = {
    "application/json": "json",
    "text/html": "html",
    "text/csv": "csv",
    "image/svg+xml": "svg",
}
FORMS: tuple[Form, ...] = tuple(_MEDIA_TYPES.values())
#: Bytes of sample rows that are read at once.
_TOGETHER = 2**16
_PICTURE_HEADERS = {"Cache-Control": "private, max-age=300", "Vary": "Authorization, Cookie"}

_FORMS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The report", "content": {media: {} for media in _MEDIA_TYPES}}
}
_COMPARED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/html": {}, "image/svg+xml": {}}}
}
_EPSILON = "One of those that the models were certified at; default: the training's"
_LINES: dict[int | str, dict[str, Any]] = {
    200: {"description": "JSON lines", "content": {"application/x-ndjson": {}}}
}
_PNG: dict[int | str, dict[str, Any]] = {
    200: {"description": "A picture", "content": {"image/png": {}}}
}
_NPZ: dict[int | str, dict[str, Any]] = {
    200: {"description": "A NumPy archive", "content": {"application/zip": {}}}
}

_CERTIFICATE: dict[int | str, dict[str, Any]] = {
    200: {"description": "A certificate", "content": {"application/octet-stream": {}}}
}


@router.get(
    "/jobs/{job_id}/report",
    response_class=Response,
    responses=_FORMS,
    summary="The report, in the form the Accept header asks for",
)
async def negotiated_report(
    job_id: str, request: Request, services: UsesServices, principal: Principal
) -> Response:
    """JSON unless HTML, CSV or SVG is preferred. 409 while there is no report."""
    form = negotiate(request.headers.get("accept", ""))
    return await to_thread.run_sync(lambda: _report(services, job_id, form, principal))


@router.get(
    "/jobs/{job_id}/report.{form}",
    response_class=Response,
    responses=_FORMS,
    summary="The report in the form of the suffix",
)
async def report_by_suffix(
    job_id: str, form: Form, services: UsesServices, principal: Principal
) -> Response:
    """report.json, report.html, report.csv or report.svg."""
    return await to_thread.run_sync(lambda: _report(services, job_id, form, principal))


@router.get(
    "/jobs/{job_id}/pareto",
    response_model=Pareto,
    responses=_COMPARED,
    summary="The models of a sweep compared, in the form the Accept header asks for",
)
async def negotiated_pareto(
    job_id: str,
    request: Request,
    services: UsesServices,
    principal: Principal,
    epsilon: Annotated[str | None, Query(description=_EPSILON, max_length=100)] = None,
) -> Response:
    """Clean over certified accuracy, each point with its model and report: JSON unless SVG or
    HTML, a page that can be printed and mailed, is preferred. 409 while there are no reports, 404
    where the job is no sweep."""
    form = negotiate(request.headers.get("accept", ""), ("json", "html", "svg"))
    return await to_thread.run_sync(lambda: _pareto(services, job_id, form, epsilon, principal))


@router.get(
    "/jobs/{job_id}/pareto.{form}",
    response_model=Pareto,
    responses=_COMPARED,
    summary="The models of a sweep compared, in the form of the suffix",
)
async def pareto_by_suffix(
    job_id: str,
    form: Literal["json", "html", "svg"],
    services: UsesServices,
    principal: Principal,
    epsilon: Annotated[str | None, Query(description=_EPSILON, max_length=100)] = None,
) -> Response:
    """pareto.json, pareto.html or pareto.svg."""
    return await to_thread.run_sync(lambda: _pareto(services, job_id, form, epsilon, principal))


@router.get(
    "/jobs/{job_id}/cascade",
    response_model=CascadeReport,
    summary="What the stages of a cascade of networks come to together",
)
async def cascade(job_id: str, services: UsesServices, principal: Principal) -> FileResponse:
    """Per epsilon: which stage answers how many samples, CAP's robust accuracy, which is an
    estimate, and what is proved of the cascade as a function. The stages are the job's ``models``,
    each with its own files and report. 404 where the job is no cascade."""
    path = await to_thread.run_sync(services.results.cascade_path, job_id, principal)
    return FileResponse(path, media_type="application/json", headers=DOCUMENT_HEADERS)


@router.get("/jobs/{job_id}/samples", summary="Rows per sample, in pages")
async def samples(
    job_id: str,
    services: UsesServices,
    principal: Principal,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[int, Query(ge=0, lt=2**63)] = 0,
) -> Page[SampleRow]:
    """Sample rows in the order of the data set; ``cursor`` comes from the page before."""
    return await to_thread.run_sync(
        lambda: _sample_page(services.results.samples_path(job_id, principal), cursor, limit)
    )


@router.get(
    "/jobs/{job_id}/samples.jsonl",
    response_class=Response,
    responses=_LINES,
    summary="All rows in one file, whose sha256 the report names",
)
async def sample_lines(job_id: str, services: UsesServices, principal: Principal) -> FileResponse:
    """One JSON object per line, in the order of the data set."""
    path = await to_thread.run_sync(services.results.samples_path, job_id, principal)
    return FileResponse(path, media_type="application/x-ndjson", filename=f"{job_id}.jsonl")


@router.get(
    "/jobs/{job_id}/samples/{index}.png",
    response_class=Response,
    responses=_PNG,
    summary="A sample as a small picture",
)
async def sample_picture(
    job_id: str,
    index: Annotated[int, PathParameter(ge=0, lt=2**62)],
    services: UsesServices,
    principal: Principal,
    of: PictureOf = "sample",
) -> Response:
    """At most 64 x 64 pixels; ``of``: the sample itself, its counterexample, or how that differs
    (stretched around grey). 404 where samples are no pictures."""
    png = await to_thread.run_sync(lambda: services.results.picture(job_id, index, of, principal))
    return Response(png, media_type="image/png", headers=_PICTURE_HEADERS)


@router.get(
    "/jobs/{job_id}/counterexamples.npz",
    response_class=Response,
    responses=_NPZ,
    summary="Counterexamples that were found",
)
async def counterexamples(
    job_id: str, services: UsesServices, principal: Principal
) -> FileResponse:
    """Inputs that the deployed network gets wrong, each replayed in ONNX Runtime."""

    def find() -> Path:
        services.results.finished(job_id, principal)
        path = services.store.counterexamples_path(job_id)
        if not services.store.has(path):
            raise NotFound("no counterexample was found", code="no_counterexamples")
        return path

    path = await to_thread.run_sync(find)
    return FileResponse(path, media_type="application/zip", filename=f"{job_id}.npz")


@router.get(
    "/jobs/{job_id}/certificate",
    response_class=Response,
    responses=_CERTIFICATE,
    summary="What certserve-check proves again, without this service",
)
async def certificate(job_id: str, services: UsesServices, principal: Principal) -> FileResponse:
    """Layers, weights, samples and claims in the layout of safetensors (docs/certificates.md).
    404 where the checker does not cover the network, it is too large, or nothing is claimed."""
    path = await to_thread.run_sync(services.results.certificate_path, job_id, principal)
    name = f"{job_id}.certificate.safetensors"
    return FileResponse(path, media_type="application/octet-stream", filename=name)


def negotiate(accept: str, forms: Sequence[Form] = FORMS) -> Form:
    """The best of ``forms`` for an Accept header. Raises NotAcceptable."""
    best: tuple[float, int, Form] | None = None
    for part in accept.split(",") if accept.strip() else ["*/*"]:
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        for rank, (known, form) in enumerate(_MEDIA_TYPES.items()):
            if form not in forms:
                continue
            family = known.partition("/")[0] + "/*"
            if media in (known, family, "*/*") and quality > 0:
                # An exact type wins over a wildcard of the same quality.
                candidate = (quality + (0.0001 if media == known else 0.0), -rank, form)
                if best is None or candidate[:2] > best[:2]:
                    best = candidate
    if best is None:
        raise NotAcceptable(
            "this is available as "
            + ", ".join(media for media, form in _MEDIA_TYPES.items() if form in forms),
            hint="or by suffix: .json, for example",
        )
    return best[2]


def _report(services: Services, job_id: str, form: Form, caller: Caller) -> Response:
    path = services.results.report_path(job_id, caller)
    rows = services.results.samples_path(job_id, caller)
    if form == "json":
        return FileResponse(path, media_type="application/json", headers=DOCUMENT_HEADERS)
    report = json.loads(path.read_bytes())
    if form in ("csv", "svg") and report.get("property") is not None:
        raise NotAcceptable(
            f"the report of a property has no {form} form: it has no samples and no epsilons",
            code="no_such_format",
            hint="report.json and report.html",
        )
    if form == "svg":
        return Response(
            reports.render_svg(report), media_type="image/svg+xml", headers=DOCUMENT_HEADERS
        )
    if form == "csv":
        name = {"Content-Disposition": f'attachment; filename="{job_id}.csv"'}
        lines = reports.render_csv(report, _rows(rows))
        return StreamingResponse(lines, media_type="text/csv", headers={**DOCUMENT_HEADERS, **name})
    page = reports.render_html(
        report,
        _rows(rows),
        training=services.results.training(job_id, caller),
        pictures=services.results.counterexamples(rows, job_id, caller),
    )
    return Response(page, media_type="text/html", headers=DOCUMENT_HEADERS)


def _pareto(
    services: Services, job_id: str, form: Form, epsilon: str | None, caller: Caller
) -> Response:
    if form == "html":
        page = reports.render_sweep_html(services.results.sweep(job_id, epsilon, caller))
        return Response(page, media_type="text/html", headers=DOCUMENT_HEADERS)
    found = services.results.pareto(job_id, epsilon, caller).model_dump(mode="json")
    if form == "json":
        return JSONResponse(found, headers=DOCUMENT_HEADERS)
    chart = reports.render_pareto_svg(found)
    return Response(chart, media_type="image/svg+xml", headers=DOCUMENT_HEADERS)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        # One call for many lines is much faster than one for each.
        while lines := file.readlines(_TOGETHER):
            yield from json.loads(b"[" + b",".join(lines) + b"]")


def _sample_page(path: Path, cursor: int, limit: int) -> Page[SampleRow]:
    """The cursor is the byte at which the next row begins."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if cursor > 0:
            file.seek(min(cursor, size) - 1)
            if cursor > size or file.read(1) != b"\n":
                raise InvalidInput(
                    "the cursor is not valid: give the next_cursor of an earlier page",
                    code="invalid_cursor",
                    field="cursor",
                )
        file.seek(cursor)
        items: list[SampleRow] = []
        while len(items) < limit and (line := file.readline()):
            items.append(SampleRow.model_validate_json(line))
        following = str(file.tell()) if file.tell() < size else None
    return Page(items=items, next_cursor=following)
