"""POST /jobs/bulk: cancel, retry or delete all jobs of a filter."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.api.auth import Principal
from service.api.bodies import json_body, media_type, request_body
from service.api.errors import PROBLEM
from service.api.services import UsesServices
from service.contract.schemas.parsing import parse_model
from service.contract.schemas.problems import Unsupported
from service.contract.schemas.submissions import Strict
from service.jobs.bulk import BulkAction, BulkFilter

__all__ = ["router"]

router = APIRouter(tags=["jobs"])


class _BulkRequest(Strict):
    action: BulkAction = Field(description="What is done to each of them.")
    filter: BulkFilter = Field(default_factory=lambda: BulkFilter(), description="Which jobs.")
    expected_count: int = Field(
        ge=0, le=1_000_000, description="How many they are: another number is a 409."
    )


class BulkAnswer(BaseModel):
    """What became of it: ``refused`` maps a job's id to the problem with it."""

    action: BulkAction
    done: int
    refused: dict[str, dict[str, Any]]


_BODY = request_body(
    {
        "application/json": _BulkRequest.model_json_schema(
            ref_template="#/components/schemas/{model}"
        )
    }
)


@router.post(
    "/jobs/bulk",
    openapi_extra=_BODY,
    responses={409: PROBLEM},
    summary="Cancel, retry or delete all jobs of a filter",
)
async def bulk(request: Request, services: UsesServices, principal: Principal) -> BulkAnswer:
    """`cancel` is for queued and running jobs, `retry` for failed and cancelled ones, `delete` for
    those that have ended; others of the filter are left alone. 409 `count_changed` where these are
    not `expected_count` many: then nothing is done."""
    given = media_type(request)
    if given != "application/json":
        raise Unsupported(
            f"a bulk action is application/json, not {given[:100]!r}",
            code="unsupported_media_type",
        )
    value = await json_body(request, limit=services.settings.max_spec_bytes)
    asked = parse_model(_BulkRequest, value, field="body", code="invalid_request")
    result = await services.bulk.act(asked.action, asked.filter, asked.expected_count, principal)
    return BulkAnswer(action=asked.action, done=result.done, refused=result.refused)
