"""The application with its console: what ``certserve serve`` serves.

A browser that asks for a page is answered with pages, errors too; every other client gets what
the API alone would say.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException

from service.api.app import create_app as create_api
from service.console import assets
from service.console.broadcast import Broadcast
from service.console.pages import compare, forms, job, jobs, login, samples, system
from service.console.rendering import accepts_html, page
from service.contract.schemas.problems import Problem
from service.contract.settings import Settings

__all__ = ["create_app"]

_PAGES = (login, jobs, job, samples, compare, forms, system, assets)


def create_app(settings: Settings | None = None) -> FastAPI:
    """API and console; without ``settings`` the environment is read (uvicorn's ``--factory``)."""
    app = create_api(settings, pages=[module.router for module in _PAGES])
    app.state.broadcast = Broadcast()
    for kind in (Problem, HTTPException, RequestValidationError, RedisError):
        _show_to_people(app, kind)
    return app


def _show_to_people(app: FastAPI, kind: type[Exception]) -> None:
    """Let a browser see errors of this kind as a page, or be asked to log in."""
    stated: Any = app.exception_handlers[kind]

    async def shown(request: Request, error: Exception) -> Response:
        response: Response = await stated(request, error)
        asks_for_page = request.method in ("GET", "HEAD") and accepts_html(request)
        if not asks_for_page or "hx-request" in request.headers:
            return response
        if response.status_code == 401:
            wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/login?next={quote(wanted, safe='')}", status_code=303)
        services = request.app.state.services
        problem = json.loads(bytes(response.body))
        return page(
            request,
            services,
            "error.html",
            {"problem": problem},
            caller=None,
            status=response.status_code,
        )

    app.add_exception_handler(kind, shown)
