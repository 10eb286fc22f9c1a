"""Bodies of requests: JSON within a limit, and the file fields that uploads may have."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from anyio import to_thread
from fastapi import Request

from service.access.keys import Caller
from service.api.services import Services
from service.contract.schemas.parsing import parse_json
from service.contract.schemas.problems import TooLarge
from service.contract.settings import Settings
from service.uploads.dataset_files import dataset_format
from service.uploads.model_files import model_format
from service.uploads.receive import FileRule

__all__ = ["dataset_fields", "json_body", "metered", "model_fields"]


async def json_body(request: Request, *, limit: int) -> Any:
    """The JSON value of the body. Raises TooLarge, Malformed."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"the body is longer than {limit} bytes")
    return parse_json(bytes(body))


def model_fields(settings: Settings) -> dict[str, FileRule]:
    """The file field ``model``."""
    return {"model": FileRule(settings.max_model_bytes, model_format)}


def dataset_fields(settings: Settings) -> dict[str, FileRule]:
    """The file fields ``dataset`` and ``dataset_labels`` (of an idx pair)."""
    rule = FileRule(settings.max_dataset_bytes, dataset_format)
    return {"dataset": rule, "dataset_labels": rule}


@asynccontextmanager
async def metered(
    request: Request, services: Services, caller: Caller
) -> AsyncIterator[Callable[[int], None]]:
    """A meter of the bytes received inside the block; it raises TooManyRequests over the quota."""
    announced = request.headers.get("content-length", "")
    counting = services.limits.upload(
        caller, int(announced[:18]) if announced.isdecimal() else None
    )
    meter = await to_thread.run_sync(counting.__enter__)
    try:
        yield meter.take
    finally:
        await to_thread.run_sync(counting.__exit__, None, None, None)
