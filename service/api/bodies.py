"""Bodies of requests: JSON within a limit, and the file fields that uploads may have."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from service.contract.problems import TooLarge
from service.contract.settings import Settings
from service.parsing import parse_json
from service.uploads.datasets import dataset_format
from service.uploads.models import model_format
from service.uploads.receive import FileRule

__all__ = ["dataset_fields", "json_body", "model_fields"]


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
