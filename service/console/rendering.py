"""From a template to a response: escaped, with the headers that keep a page to itself.

No page holds a script or a style of its own: the policy forbids both, so that text from an upload
which got past the escaping would still do nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from service.access.keys import Caller
from service.api.browser import page_token, set_cookie
from service.api.services import Services
from service.console.assets import asset_url
from service.console.views import wording
from service.contract.schemas.problems import NotAcceptable
from service.contract.version import release
from service.reports.plain_text import finalize

__all__ = ["PAGE_HEADERS", "accepts_html", "fragment", "need_html", "page"]

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Vary": "Accept, Cookie",
    # Unlike no-referrer, with it a browser sends a form's Origin.
    "Referrer-Policy": "same-origin",
}

_HTML = re.compile(r"\s*(text/html|application/xhtml\+xml)\s*(;|$)")
_NO_QUALITY = re.compile(r";\s*q=0(\.0*)?\s*(;|$)")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("service.console"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= wording.FILTERS
    environment.globals |= {"asset": asset_url, "release": release()}
    return environment


_ENVIRONMENT = _environment()


def accepts_html(request: Request) -> bool:
    """Whether the client names HTML among what it takes: a browser does, programs do not.

    What a page fetches for itself (htmx) names nothing.
    """
    if "hx-request" in request.headers:
        return True
    parts = request.headers.get("accept", "").split(",")
    return any(_HTML.match(part) and not _NO_QUALITY.search(part) for part in parts)


def need_html(request: Request, instead: str) -> None:
    """Raises NotAcceptable for a program that asked for a page."""
    if not accepts_html(request):
        raise NotAcceptable("this address is a page for people (text/html)", hint=instead)


def fragment(template: str, context: Mapping[str, Any]) -> str:
    """A part of a page."""
    return _ENVIRONMENT.get_template(template).render(context)


def page(
    request: Request,
    services: Services,
    template: str,
    context: Mapping[str, Any],
    *,
    caller: Caller | None,
    status: int = 200,
) -> HTMLResponse:
    """A whole page, with the token that its forms need, and a cookie for the token if needed."""
    token, fresh = page_token(request, services.settings)
    text = fragment(
        template,
        {
            **context,
            "token": token,
            "caller": caller,
            "keyed": services.keys.configured,
            "path": request.url.path,
        },
    )
    response = HTMLResponse(text, status_code=status, headers=PAGE_HEADERS)
    if fresh is not None:
        set_cookie(request, response, services.settings, fresh)
    return response
