"""Bodies of requests: their schemas, JSON within a limit, and forms with uploads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
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
from service.uploads.model_files import MAX_DATA_FILES, check_data_name, model_format
from service.uploads.property_files import MAX_PROPERTY_BYTES, property_format
from service.uploads.receive import FileRule, Form, receive_form

__all__ = [
    "DATASET_FILES",
    "FILE",
    "MODEL_FILES",
    "dataset_fields",
    "json_body",
    "media_type",
    "model_fields",
    "object_schema",
    "property_fields",
    "received_form",
    "request_body",
    "text_schema",
]

#: A file in a form, as OpenAPI describes it.
FILE = {"type": "string", "format": "binary"}

#: The files of a model and of a data set in a form.
MODEL_FILES = {
    "model": {**FILE, "description": "ONNX (.onnx), .safetensors, or a .pt or .pth state dict"},
    "model_data": {
        "type": "array",
        "items": FILE,
        "description": "What an ONNX export keeps in files beside it, each under its own name",
    },
}
DATASET_FILES = {
    "dataset": {**FILE, "description": "A .npz, .npy, .zip of class folders, or idx .gz file"},
    "dataset_labels": {**FILE, "description": "The labels of an idx or npy pair"},
}


def text_schema(description: str) -> dict[str, Any]:
    """The JSON schema of a text."""
    return {"type": "string", "description": description}


def object_schema(properties: Mapping[str, Any], *, required: list[str]) -> dict[str, Any]:
    """The JSON schema of an object with these members and no others."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": required,
        "additionalProperties": False,
    }


def request_body(schemas: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """OpenAPI's description of a required body: media type -> schema."""
    content = {media_type: {"schema": schema} for media_type, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}


def media_type(request: Request) -> str:
    """The media type of the body, without parameters; empty where none is given."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_body(request: Request, *, limit: int) -> Any:
    """The JSON value of the body. Raises TooLarge, Malformed."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"the body is longer than {limit} bytes")
    return parse_json(bytes(body))


def model_fields(settings: Settings) -> dict[str, FileRule]:
    """The file fields ``model`` and ``model_data`` (what an ONNX file keeps beside itself)."""
    most = settings.max_model_bytes
    return {
        "model": FileRule(most, model_format),
        "model_data": FileRule(most, check_data_name, MAX_DATA_FILES),
    }


def dataset_fields(settings: Settings) -> dict[str, FileRule]:
    """The file fields ``dataset`` and ``dataset_labels`` (of an idx or npy pair)."""
    rule = FileRule(settings.max_dataset_bytes, dataset_format)
    return {"dataset": rule, "dataset_labels": rule}


def property_fields() -> dict[str, FileRule]:
    """The file field ``property``: VNN-LIB in place of a data set."""
    return {"property": FileRule(MAX_PROPERTY_BYTES, property_format)}


@asynccontextmanager
async def received_form(
    request: Request,
    services: Services,
    caller: Caller,
    *,
    files: Mapping[str, FileRule],
    texts: Mapping[str, int],
) -> AsyncIterator[Form]:
    """The multipart body, with these file fields and texts (name -> most bytes).

    What is not kept inside the block is deleted after it. Raises TooManyRequests where the caller's
    quota of bytes is used up, and what ``receive_form`` raises.
    """
    announced = request.headers.get("content-length", "")
    counting = services.limits.upload(
        caller, int(announced[:18]) if announced.isdecimal() else None
    )
    meter = await to_thread.run_sync(counting.__enter__)
    try:
        async with receive_form(
            request, services.store, files=files, texts=texts, meter=meter.take
        ) as form:
            yield form
    finally:
        await to_thread.run_sync(counting.__exit__, None, None, None)
