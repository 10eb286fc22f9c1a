"""The OpenAPI page, which asks for a key where the service does."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.services import Services

__all__ = ["describe"]

#: What answers without a key.
_OPEN = frozenset({"/healthz", "/readyz", "/methods", "/architectures"})
_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key, made with `certserve keys create NAME`.",
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of the endpoints; with ``security`` once a key is configured."""
    services = getattr(app.state, "services", None)
    guarded = isinstance(services, Services) and services.keys.configured
    if app.openapi_schema is None:
        app.openapi_schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
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
