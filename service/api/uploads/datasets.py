"""POST /datasets, and the records of uploaded data sets."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from service.api.auth import Principal
from service.api.bodies import (
    DATASET_FILES,
    dataset_fields,
    object_schema,
    request_body,
    text_schema,
)
from service.api.routes.jobs import Page
from service.api.services import UsesServices
from service.api.uploads.listing import find_record, record_page
from service.api.uploads.registration import keep_dataset
from service.api.uploads.upload import upload_to
from service.uploads.receive import Form

__all__ = ["DatasetRecord", "router"]

router = APIRouter(tags=["datasets"])

_BODY = request_body(
    {
        "multipart/form-data": object_schema(
            {
                **DATASET_FILES,
                "name": text_schema("What it is called; a registered name then means this one"),
            },
            required=["dataset"],
        )
    }
)


class DatasetRecord(BaseModel):
    """What is known of a data set; ``samples`` and ``shape`` where its headers tell."""

    id: str
    format: str
    name: str
    names: list[str]
    size: int
    samples: int | None
    shape: list[int] | None
    labels: bool
    created_at: str
    links: dict[str, str]


@router.post(
    "/datasets",
    status_code=201,
    openapi_extra=_BODY,
    responses={200: {"model": DatasetRecord, "description": "Known already"}},
    summary="Upload a data set",
)
async def upload_dataset(
    request: Request, response: Response, services: UsesServices, principal: Principal
) -> DatasetRecord:
    """Multipart with ``dataset`` (and ``dataset_labels``); ``name`` may be a registered name."""

    def keep(form: Form, name: str | None) -> tuple[str, bool]:
        source, new = keep_dataset(services, form, name=name, owner=principal.name, own=True)
        assert source.id is not None
        return source.id, new

    files = dataset_fields(services.settings)
    return _shown(
        await upload_to(
            "datasets", keep, request, response, services, principal, files=files, field="dataset"
        )
    )


@router.get("/datasets", summary="List data sets, newest first")
async def list_datasets(
    services: UsesServices,
    principal: Principal,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: str | None = None,
) -> Page[DatasetRecord]:
    """A page of the uploaded data sets."""
    records, following = await to_thread.run_sync(
        record_page, services, "datasets", cursor, limit, principal
    )
    return Page(items=[_shown(record) for record in records], next_cursor=following)


@router.get("/datasets/{dataset_id}", summary="Get a data set")
async def get_dataset(
    dataset_id: str, services: UsesServices, principal: Principal
) -> DatasetRecord:
    """What is known of it."""
    return _shown(
        await to_thread.run_sync(find_record, services, "datasets", dataset_id, principal)
    )


def _shown(record: dict[str, Any]) -> DatasetRecord:
    return DatasetRecord.model_validate({**record, "links": {"self": f"/datasets/{record['id']}"}})
