"""POST /datasets, and the records of uploaded data sets."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from service.api.auth import Principal
from service.api.bodies import dataset_fields, metered
from service.api.routes.jobs import Page
from service.api.services import UsesServices
from service.api.uploads.listing import find_record, record_page
from service.api.uploads.registration import check_name, keep_dataset
from service.contract.schemas.problems import InvalidInput
from service.uploads.receive import receive_form

__all__ = ["DatasetRecord", "router"]

router = APIRouter(tags=["datasets"])

_FILE = {"type": "string", "format": "binary"}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "dataset": _FILE,
                        "dataset_labels": _FILE,
                        "name": {"type": "string"},
                    },
                    "required": ["dataset"],
                    "additionalProperties": False,
                }
            }
        },
    }
}


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
    files = dataset_fields(services.settings)
    async with (
        metered(request, services, principal) as meter,
        receive_form(
            request, services.store, files=files, texts={"name": 400}, meter=meter
        ) as form,
    ):
        if "dataset" not in form.files:
            raise InvalidInput("the file dataset is missing", code="missing_field", field="dataset")
        name = check_name(form.texts.get("name"))
        source, new = await to_thread.run_sync(
            lambda: keep_dataset(services, form, name=name, owner=principal.name, own=True)
        )
    assert source.id is not None
    record = await to_thread.run_sync(find_record, services, "datasets", source.id, principal)
    response.headers["Location"] = f"/datasets/{source.id}"
    response.status_code = 201 if new else 200
    return _shown(record)


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
