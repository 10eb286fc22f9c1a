"""GET /docs and /redoc: the API's own pages. Everything on them comes from this service.

Their viewers (Swagger UI, ReDoc) lie in the package fastapi-offline, so that the pages work where
nothing outside can be reached, and no third party learns who reads them.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from service.api.browser import TOKEN_HEADER, page_token, set_cookie
from service.api.services import UsesServices
from service.contract.schemas.problems import NotFound

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_FOLDER = Path(str(files("fastapi_offline"))) / "static"
#: What of the package is served, and as what.
_ASSETS = {
    "favicon.png": "image/png",
    "redoc.standalone.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
_OPENAPI, _TITLE, _ICON = "openapi.json", "certserve", "docs/favicon.png"
#: Both viewers style their elements in place, and ReDoc searches in a worker of its own making.
_POLICY = (
    "default-src 'none'; script-src 'self'{scripts}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'; worker-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: How the page starts its viewer, and what is put there: a header for the requests that it makes.
_CALL = "SwaggerUIBundle({"
_WITH_TOKEN = (
    "requestInterceptor: (request) => { "
    f'request.headers["{TOKEN_HEADER}"] = "%s"; return request; }}, '
)
_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def _page(page: HTMLResponse) -> HTMLResponse:
    """The page, whose scripts are those that stand in it now and no others."""
    hashes = "".join(
        f" 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in _INLINE.findall(bytes(page.body).decode())
    )
    page.headers["Content-Security-Policy"] = _POLICY.format(scripts=hashes)
    return page


@router.get("/docs")
async def swagger(request: Request, services: UsesServices) -> HTMLResponse:
    """Swagger UI: every endpoint, and a form to try it, whose requests bring the page's token."""
    settings = services.settings
    page = get_swagger_ui_html(
        openapi_url=_OPENAPI,
        title=_TITLE,
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url=_ICON,
    )
    token, fresh = page_token(request, settings)
    text = bytes(page.body).decode().replace(_CALL, _CALL + _WITH_TOKEN % token, 1)
    page = _page(HTMLResponse(text))
    if fresh is not None:
        set_cookie(request, page, settings, fresh)
    return page


@router.get("/redoc")
async def redoc() -> HTMLResponse:
    """ReDoc: the same to read."""
    page = get_redoc_html(
        openapi_url=_OPENAPI,
        title=_TITLE,
        redoc_js_url="docs/redoc.standalone.js",
        redoc_favicon_url=_ICON,
        with_google_fonts=False,
    )
    return _page(page)


@router.get("/docs/{name}")
async def asset(name: str) -> Response:
    """One of the files that the pages ask for. Raises NotFound."""
    media_type = _ASSETS.get(name)
    if media_type is None:
        raise NotFound(f"there is no page /docs/{name[:80]}")
    cached = {"Cache-Control": "public, max-age=86400"}
    return FileResponse(_FOLDER / name, media_type=media_type, headers=cached)
