"""POST /certify: take a model, a data set and a spec, answer with the job."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic import Field, JsonValue
from redis.exceptions import RedisError

from service.api.bodies import dataset_fields, json_body, model_fields
from service.api.receipts import keep_dataset, keep_model, known_dataset, known_model
from service.auth import Principal
from service.contract.problems import InvalidInput, Unsupported
from service.contract.schemas import (
    TERMINAL,
    DatasetSource,
    JobRecord,
    ModelSource,
    Spec,
    Strict,
)
from service.jobs import check_fit, record
from service.parsing import parse_json, parse_model
from service.services import Services, UsesServices
from service.uploads.receive import Form, receive_form

__all__ = ["router"]

router = APIRouter(tags=["jobs"])

_FILE = {"type": "string", "format": "binary"}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "model": _FILE,
                        "model_id": {"type": "string"},
                        "dataset": {"anyOf": [_FILE, {"type": "string"}]},
                        "dataset_labels": _FILE,
                        "dataset_id": {"type": "string"},
                        "spec": {"type": "string", "description": "JSON text of a spec"},
                    },
                    "required": ["spec"],
                    "additionalProperties": False,
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "model_id": {"type": "string"},
                        "dataset": {"type": "string"},
                        "spec": {"type": "object"},
                    },
                    "required": ["model_id", "dataset", "spec"],
                    "additionalProperties": False,
                }
            },
        },
    }
}


class _JsonSubmission(Strict):
    """The body of a submission of things that are here already."""

    model_id: Annotated[str, Field(max_length=200)]
    dataset: Annotated[str | None, Field(max_length=200)] = None
    dataset_id: Annotated[str | None, Field(max_length=200)] = None
    spec: JsonValue


@router.post(
    "/certify",
    status_code=202,
    response_model=JobRecord,
    openapi_extra=_BODY,
    responses={200: {"model": JobRecord, "description": "Ended within Prefer: wait"}},
    summary="Certify a model on a data set",
)
async def certify(
    request: Request, response: Response, services: UsesServices, principal: Principal
) -> JobRecord:
    """Multipart with files or ids, or JSON with ids. The job is on disk before the answer."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        spec, model, dataset = await _from_form(request, services)
    elif media_type == "application/json":
        spec, model, dataset = await _from_json(request, services)
    else:
        raise Unsupported(
            f"a submission is multipart/form-data or application/json, not {media_type[:100]!r}",
            code="unsupported_media_type",
        )
    job = await services.jobs.submit("certify", spec, model, dataset, principal=principal)
    response.headers["Location"] = f"/jobs/{job.id}"
    wait_s = _preferred_wait(request, services.settings.max_wait_s)
    if wait_s is not None:
        response.headers["Preference-Applied"] = f"wait={wait_s:g}"
        try:
            state = await services.jobs.wait(job.id, wait_s)
        except RedisError:
            pass  # the job is accepted all the same
        else:
            job = record(state)
    if job.status in TERMINAL:
        response.status_code = 200
    else:
        response.headers["Retry-After"] = "1"
    return job


def _preferred_wait(request: Request, most_s: float) -> float | None:
    """Seconds of ``Prefer: wait=N`` (RFC 7240), at most ``most_s``; None without."""
    for preference in ",".join(request.headers.getlist("prefer")).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait" and value.strip(' "').isdecimal():
            return min(float(value.strip(' "')[:9]), most_s)
    return None


async def _from_json(
    request: Request, services: Services
) -> tuple[Spec, ModelSource, DatasetSource]:
    value = await json_body(request, limit=services.settings.max_spec_bytes)
    body = parse_model(_JsonSubmission, value, field="body", code="invalid_request")
    spec = parse_model(Spec, body.spec, field="spec", code="invalid_spec")
    wanted = _only_one(body.dataset, body.dataset_id, "dataset", "dataset_id")
    model, dataset = await to_thread.run_sync(
        lambda: (
            known_model(services, body.model_id),
            known_dataset(services, wanted, field="dataset" if body.dataset else "dataset_id"),
        )
    )
    check_fit(spec, model, dataset)
    return spec, model, dataset


async def _from_form(
    request: Request, services: Services
) -> tuple[Spec, ModelSource, DatasetSource]:
    settings = services.settings
    files = model_fields(settings) | dataset_fields(settings)
    texts = {"spec": settings.max_spec_bytes, "model_id": 200, "dataset_id": 200, "dataset": 200}
    async with receive_form(request, services.store, files=files, texts=texts) as form:
        if "spec" not in form.texts:
            raise InvalidInput("the field spec is missing", code="missing_field", field="spec")
        value = parse_json(form.texts["spec"], field="spec")
        spec = parse_model(Spec, value, field="spec", code="invalid_spec")
        return await to_thread.run_sync(lambda: _sources(form, spec, services))


def _sources(form: Form, spec: Spec, services: Services) -> tuple[Spec, ModelSource, DatasetSource]:
    """Everything is looked at before anything is kept."""
    model_file = form.files.get("model")
    model_id = form.texts.get("model_id")
    if (model_file is None) == (model_id is None):
        raise _one_of(model_file is None, "model", "model_id")
    dataset_file = form.files.get("dataset")
    dataset_name = form.texts.get("dataset") or None
    dataset_id = form.texts.get("dataset_id") or None
    if dataset_file is None:
        dataset_id = _only_one(dataset_name, dataset_id, "dataset", "dataset_id")
        field = "dataset" if dataset_name else "dataset_id"
        dataset = known_dataset(services, dataset_id, field=field)
    else:
        if dataset_id is not None:
            raise _one_of(False, "dataset", "dataset_id")
        dataset, _ = keep_dataset(services, form, name=None)
    if model_id is not None:
        model = known_model(services, model_id)
    else:
        assert model_file is not None
        model, _ = keep_model(services, model_file, name=None)
    check_fit(spec, model, dataset)
    return spec, model, dataset


def _only_one(first: str | None, second: str | None, *names: str) -> str:
    if (first is None) == (second is None):
        raise _one_of(first is None, *names)
    chosen = first if first is not None else second
    assert chosen is not None
    return chosen


def _one_of(missing: bool, *names: str) -> InvalidInput:
    if missing:
        return InvalidInput(
            f"one of {' and '.join(names)} is needed", code="missing_field", field=names[0]
        )
    return InvalidInput(
        f"{' and '.join(names)} exclude each other", code="conflicting_fields", field=names[-1]
    )
