"""What a request of a browser must show: our own origin, and the token that only our pages know.

A browser sends cookies, and on loopback it needs nothing at all, also where another site's page
makes it ask. So an unsafe request that comes from a browser (it has Origin, Sec-Fetch-Site or our
cookie) is refused unless its Origin is our own; and unless it brings an API key itself, it needs
the token of its cookie, which other sites can neither read nor derive.
"""

from __future__ import annotations

import hashlib
import hmac
import re

from fastapi import Request, Response

from service.access.sessions import new_id
from service.contract.schemas.problems import Forbidden
from service.contract.settings import Settings

__all__ = [
    "SAFE",
    "TOKEN_HEADER",
    "check_origin",
    "check_token",
    "drop_cookie",
    "from_browser",
    "page_token",
    "read_cookie",
    "set_cookie",
    "token_of",
]

TOKEN_HEADER = "X-CSRF-Token"  # noqa: S105 - the name of a header
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

_ID = re.compile(r"[A-Za-z0-9_-]{43}")


def read_cookie(request: Request, settings: Settings) -> str | None:
    """The id in our cookie; None where there is none, or it is not one of ours."""
    value = request.cookies.get(_cookie_name(request, settings), "")
    return value if _ID.fullmatch(value) else None


def set_cookie(request: Request, response: Response, settings: Settings, identity: str) -> None:
    """Give the browser an id to send back: no script can read it, no other site can send it."""
    response.set_cookie(
        _cookie_name(request, settings),
        identity,
        path="/",
        secure=_is_secure(request, settings),
        httponly=True,
        samesite="lax",
    )


def drop_cookie(request: Request, response: Response, settings: Settings) -> None:
    """Have the browser forget its id."""
    response.delete_cookie(
        _cookie_name(request, settings),
        path="/",
        secure=_is_secure(request, settings),
        httponly=True,
        samesite="lax",
    )


def page_token(request: Request, settings: Settings) -> tuple[str, str | None]:
    """The token for a page's forms, and the id of a cookie to set with it where there is none."""
    known = read_cookie(request, settings)
    if known is not None:
        return token_of(known), None
    fresh = new_id()
    return token_of(fresh), fresh


def token_of(identity: str) -> str:
    """The token of a cookie's id, from which the id cannot be found."""
    return hmac.new(identity.encode(), b"certserve form token", hashlib.sha256).hexdigest()


def from_browser(request: Request, settings: Settings) -> bool:
    """Whether the request shows that a browser sent it."""
    headers = request.headers
    return (
        "origin" in headers
        or "sec-fetch-site" in headers
        or read_cookie(request, settings) is not None
    )


def check_origin(request: Request, settings: Settings) -> None:
    """Raises Forbidden unless the page that sent the request is ours."""
    if request.headers.get("origin") != _own_origin(request, settings):
        raise Forbidden(
            "the request comes from another site's page, which is refused",
            code="cross_site",
            hint="behind a proxy, CERTSERVE_PUBLIC_URL names the address that browsers use",
        )


def check_token(request: Request, settings: Settings, given: str | None = None) -> None:
    """Raises Forbidden unless the request brings the token of its cookie, as header or ``given``.

    ``given``: the token in a form's field.
    """
    identity = read_cookie(request, settings)
    token = given if given is not None else request.headers.get(TOKEN_HEADER, "")
    if identity is None or not hmac.compare_digest(token_of(identity).encode(), token.encode()):
        raise Forbidden(
            "the form's token is missing or old",
            code="stale_form",
            hint="load the page again; programs send an API key, and no cookie",
        )


def _own_origin(request: Request, settings: Settings) -> str:
    if settings.public_url is not None:
        return settings.public_url
    return f"{request.url.scheme}://{request.headers.get('host', '').lower()}"


def _is_secure(request: Request, settings: Settings) -> bool:
    return (settings.public_url or str(request.url)).startswith("https:")


def _cookie_name(request: Request, settings: Settings) -> str:
    # The prefix makes browsers refuse a cookie that another host of the domain set. Without https
    # all ports of a host share their cookies: two services beside each other must not log out.
    if _is_secure(request, settings):
        return "__Host-certserve"
    return f"certserve-{request.url.port or 80}"
