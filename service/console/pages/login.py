"""GET and POST /login, POST /logout: an API key becomes a session of this browser."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import parse_qs

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from service.api.browser import check_origin, check_token, drop_cookie, read_cookie, set_cookie
from service.api.services import UsesServices
from service.console.rendering import PAGE_HEADERS, need_html, page
from service.contract.schemas.problems import Malformed, TooLarge, TooManyRequests

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_MOST_BYTES = 8192
#: A path of this service: neither //host nor /\\host, which browsers read as another site.
_OWN_PATH = re.compile(r"/(?![/\\])[\x21-\x7e]{0,2000}")


@router.get("/login")
async def login_page(request: Request, services: UsesServices, next: str = "/") -> Response:
    """The form; without keys there is nothing to log in to."""
    need_html(request, "programs send the header Authorization: Bearer KEY")
    if not services.keys.configured:
        return RedirectResponse(_own(next), status_code=303)
    return page(request, services, "login.html", {"next": _own(next), "problem": None}, caller=None)


@router.post("/login")
async def login(request: Request, services: UsesServices) -> Response:
    """A valid key begins a session: a new random id, whatever cookie came with the form."""
    fields = await _fields(request)
    check_origin(request, services.settings)
    check_token(request, services.settings, fields.get("csrf_token", ""))
    target = _own(fields.get("next", "/"))
    try:
        identity = await to_thread.run_sync(
            lambda: services.sessions.begin(
                fields.get("key", "").strip(), address=_address(request)
            )
        )
    except TooManyRequests as problem:
        return page(
            request,
            services,
            "login.html",
            {"next": target, "problem": problem.to_dict()},
            caller=None,
            status=429,
        )
    if identity is None:
        wrong = {"detail": "this key is not valid", "hint": "it may have been revoked"}
        return page(
            request, services, "login.html", {"next": target, "problem": wrong}, caller=None,
            status=401,
        )  # fmt: skip
    response = RedirectResponse(target, status_code=303, headers=PAGE_HEADERS)
    set_cookie(request, response, services.settings, identity)
    return response


@router.post("/logout")
async def logout(request: Request, services: UsesServices) -> Response:
    """End the session, here and in Redis."""
    fields = await _fields(request)
    check_origin(request, services.settings)
    check_token(request, services.settings, fields.get("csrf_token", ""))
    identity = read_cookie(request, services.settings)
    if identity is not None:
        await to_thread.run_sync(services.sessions.end, identity)
    response = RedirectResponse("/login", status_code=303, headers=PAGE_HEADERS)
    drop_cookie(request, response, services.settings)
    return response


async def _fields(request: Request) -> dict[str, str]:
    """The fields of a small form; the last of equal names counts."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise TooLarge(f"the form is longer than {_MOST_BYTES} bytes")
    try:
        found = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise Malformed("this is no form (application/x-www-form-urlencoded)") from error
    return {name: values[-1] for name, values in found.items()}


def _own(path: str) -> str:
    return path if _OWN_PATH.fullmatch(path) else "/"


def _address(request: Request) -> str:
    """Whom to count tries for: an IPv4 address, or the network that one IPv6 host has."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unknown"
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address), 64), strict=False))
