"""Every error as ``application/problem+json``, from whichever layer it comes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match

from service.contract.schemas.problems import (
    InternalError,
    InvalidInput,
    Problem,
    TooManyRequests,
    Unavailable,
)

__all__ = ["PROBLEM", "PROBLEM_RESPONSES", "install_handlers", "problem_response"]

_log = logging.getLogger(__name__)

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "hint": {"type": "string"},
        "field": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail", "code"],
}

#: A problem, as OpenAPI describes it.
PROBLEM: dict[str, Any] = {
    "description": "What is wrong (RFC 9457)",
    "content": {"application/problem+json": {"schema": _SCHEMA}},
}

#: What every endpoint may answer, for the OpenAPI page (422 would else be FastAPI's own).
PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {422: PROBLEM, "default": PROBLEM}

_RETRY_S = {"503": "2", "507": "60"}


def problem_response(
    problem: Problem, *, headers: Mapping[str, str] | None = None, **members: Any
) -> JSONResponse:
    """The answer to a problem; ``members`` are further members of the object."""
    found = dict(headers or {})
    if str(problem.status) in _RETRY_S:
        found.setdefault("Retry-After", _RETRY_S[str(problem.status)])
    if isinstance(problem, TooManyRequests):
        found["Retry-After"] = str(max(1, math.ceil(problem.retry_after_s)))
    if problem.status == 401:
        found.setdefault("WWW-Authenticate", 'Bearer realm="certserve"')
    return JSONResponse(
        {**problem.to_dict(), **members},
        status_code=problem.status,
        headers=found,
        media_type="application/problem+json",
    )


def _methods(request: Request, routes: Iterable[BaseRoute]) -> set[str]:
    """Methods of all routes of the path; Starlette names only those of the first one.

    A path of its own wins over one with a parameter. Pages for people are no part of the API.
    """
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    own = [route for route in matching if getattr(route, "path", "") == request.url.path]
    found: set[str] = set()
    for route in own or matching:
        methods = getattr(route, "methods", None) or set()
        found |= methods if getattr(route, "include_in_schema", True) else methods & {"HEAD"}
    return found


def install_handlers(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Give the app a handler for everything that can be raised; ``routes`` are its endpoints."""

    @app.exception_handler(Problem)
    async def _stated(_request: Request, problem: Problem) -> Response:
        if problem.status >= 500:
            _log.error("%s", problem, exc_info=problem)
        return problem_response(problem)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        problem = InvalidInput(f"{place}: {first['msg']}", code="invalid_request", field=place)
        return problem_response(problem)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        phrase = HTTPStatus(error.status_code).phrase
        detail = f"{request.method} {request.url.path[:200]}: {phrase.lower()}"
        problem = Problem(detail, code=phrase.lower().replace(" ", "_").replace("-", "_"))
        problem.status, problem.title = error.status_code, phrase
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(sorted(_methods(request, routes)))
        return problem_response(problem, headers=headers)

    @app.exception_handler(RedisError)
    async def _redis(_request: Request, error: RedisError) -> Response:
        _log.warning("Redis is away: %s", error)
        return problem_response(
            Unavailable(
                "the job ledger (Redis) does not answer",
                code="redis_unavailable",
                hint="accepted jobs are safe; send the request again in a few seconds",
            )
        )

    @app.exception_handler(ClientDisconnect)
    async def _gone(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # the client has gone

    @app.exception_handler(Exception)
    async def _unexpected(_request: Request, _error: Exception) -> Response:
        # Starlette raises it again after this answer, so that the server logs the traceback.
        return problem_response(InternalError("internal error; the service's log has the details"))
