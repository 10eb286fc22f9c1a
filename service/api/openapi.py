"""The OpenAPI description; it names the API key once the service needs one."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api.services import Services

__all__ = ["describe"]

#: Paths that need no key.
_OPEN = frozenset({"/healthz", "/readyz", "/methods", "/architectures", "/keys/signing"})
_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key, made with `certserve keys create NAME`.",
}
#: What parameters of these names are, wherever they stand.
_PARAMETERS = {
    "cursor": "Where the page begins: `next_cursor` of the one before.",
    "dataset_id": "`sha256:...`, as the upload was answered.",
    "form": "One of html, json, csv, svg.",
    "index": "Position of the sample in the data set.",
    "job_id": "Id of the job, as the submission was answered.",
    "kind": "Jobs of this kind only.",
    "last-event-id": "Events after this one, as a browser sends it when it connects again.",
    "limit": "How many rows a page holds.",
    "model_id": "`sha256:...`, as the upload was answered.",
    "of": "The sample itself, its counterexample, or how they differ.",
    "wait": "Seconds to wait for the end of the job.",
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of the endpoints; with ``security`` once a key is configured."""
    services = getattr(app.state, "services", None)
    guarded = isinstance(services, Services) and services.keys.configured
    if app.openapi_schema is None:
        app.openapi_schema = _with_definitions(
            get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
        )
    if not guarded:
        return app.openapi_schema
    schema = {**app.openapi_schema}
    components = schema.get("components", {})
    schema["components"] = {**components, "securitySchemes": {"key": _SCHEME}}
    schema["paths"] = {
        path: {
            method: operation if path in _OPEN else {**operation, "security": [{"key": []}]}
            for method, operation in operations.items()
        }
        for path, operations in schema["paths"].items()
    }
    return schema


def _with_definitions(schema: dict[str, Any]) -> dict[str, Any]:
    """Move the definitions of hand-written bodies to where their references point."""
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for operations in schema["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                known = _PARAMETERS.get(parameter["name"])
                if known is not None:
                    parameter.setdefault("description", known)
            for media in operation.get("requestBody", {}).get("content", {}).values():
                for name, definition in media.get("schema", {}).pop("$defs", {}).items():
                    schemas.setdefault(name, definition)
    return schema
