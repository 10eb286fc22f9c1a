"""POST /models, and what a model has: record, ONNX file, weights."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel

from service.access.keys import Caller
from service.api.auth import Principal
from service.api.bodies import MODEL_FILES, model_fields, object_schema, request_body, text_schema
from service.api.routes.jobs import Page
from service.api.services import Services, UsesServices
from service.api.uploads.listing import find_record, record_page
from service.api.uploads.registration import keep_model
from service.api.uploads.upload import upload_to
from service.contract.schemas.problems import NotFound
from service.uploads.receive import Form

__all__ = ["ModelRecord", "router"]

router = APIRouter(tags=["models"])

_BODY = request_body(
    {
        "multipart/form-data": object_schema(
            {**MODEL_FILES, "name": text_schema("What it is called in lists")}, required=["model"]
        )
    }
)

_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": {"application/octet-stream": {}}}
}


class ModelRecord(BaseModel):
    """What is known of a model; links to files it does not have are null."""

    id: str
    format: str
    name: str
    names: list[str]
    size: int
    created_at: str
    links: dict[str, str | None]


@router.post(
    "/models",
    status_code=201,
    openapi_extra=_BODY,
    responses={200: {"model": ModelRecord, "description": "Known already"}},
    summary="Upload a model",
)
async def upload_model(
    request: Request, response: Response, services: UsesServices, principal: Principal
) -> ModelRecord:
    """Multipart with the file ``model`` and, if you like, a ``name``. 200 where it was known.

    An ONNX export of several files (`x.onnx` and `x.onnx.data`): the others in `model_data`.
    """

    def keep(form: Form, name: str | None) -> tuple[str, bool]:
        source, new = keep_model(services, form, name=name, owner=principal.name, own=True)
        return source.digest, new

    files = model_fields(services.settings)
    return _shown(
        await upload_to(
            "models", keep, request, response, services, principal, files=files, field="model"
        )
    )


@router.get("/models", summary="List models, newest first")
async def list_models(
    services: UsesServices,
    principal: Principal,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: str | None = None,
) -> Page[ModelRecord]:
    """A page of the uploaded models."""
    records, following = await to_thread.run_sync(
        record_page, services, "models", cursor, limit, principal
    )
    return Page(items=[_shown(record) for record in records], next_cursor=following)


@router.get("/models/{model_id}", summary="Get a model")
async def get_model(model_id: str, services: UsesServices, principal: Principal) -> ModelRecord:
    """What is known of it."""
    return _shown(await to_thread.run_sync(find_record, services, "models", model_id, principal))


@router.get(
    "/models/{model_id}/onnx",
    response_class=Response,
    responses=_BYTES,
    summary="The ONNX file, byte for byte",
)
async def get_onnx(model_id: str, services: UsesServices, principal: Principal) -> FileResponse:
    """As it was uploaded, or as it was exported after training.

    Of an export of several files it is one file that holds everything, once a job has read it.
    """
    return await to_thread.run_sync(_file, services, model_id, "onnx", principal)


@router.get(
    "/models/{model_id}/weights",
    response_class=Response,
    responses=_BYTES,
    summary="The state dict",
)
async def get_weights(model_id: str, services: UsesServices, principal: Principal) -> FileResponse:
    """As it was uploaded, or as it came out of training."""
    return await to_thread.run_sync(_file, services, model_id, "weights", principal)


def _digests(record: dict[str, Any]) -> dict[str, str]:
    """Digests of the model's files; training leaves both, an upload is one of them."""
    own = "onnx" if record["format"] == "onnx" else "weights"
    itself = {} if record.get("blobs") else {own: record["id"]}
    return {**itself, **record.get("files", {})}


def _shown(record: dict[str, Any]) -> ModelRecord:
    base = f"/models/{record['id']}"
    digests = _digests(record)
    links = {part: f"{base}/{part}" if part in digests else None for part in ("onnx", "weights")}
    return ModelRecord.model_validate({**record, "links": {"self": base, **links}})


def _file(services: Services, model_id: str, part: str, caller: Caller) -> FileResponse:
    record = find_record(services, "models", model_id, caller)
    digest = _digests(record).get(part)
    if digest is None:
        hint = "certify it first: a job makes one file of them" if record.get("blobs") else None
        raise NotFound(f"this model has no {part} file", code=f"no_{part}", hint=hint)
    path = services.store.blob_path(digest)
    if not services.store.has(path):
        raise NotFound("the file of this model is gone", code=f"no_{part}")
    # A trained model is an ONNX file with its weights beside it.
    weights = "safetensors" if record["format"] == "onnx" else record["format"]
    suffix = {"onnx": "onnx", "weights": weights}[part]
    return FileResponse(
        path,
        media_type="application/octet-stream",
        filename=f"{digest[7:19]}.{suffix}",
        headers={"X-Content-Type-Options": "nosniff"},
    )
