"""Authentication: the one place where a request gets its caller. Keys are never logged or returned.

Every endpoint that touches jobs, models or data sets asks for its ``Principal``; /healthz, /readyz
and the documentation do not.
"""

from __future__ import annotations

import ipaddress
import time
from typing import Annotated

from anyio import to_thread
from fastapi import Depends, Request
from redis.exceptions import RedisError

from service.access.keys import NOBODY, Caller
from service.api.browser import SAFE, check_origin, check_token, from_browser, read_cookie
from service.api.services import Services, UsesServices
from service.contract.schemas.problems import Forbidden, Unauthorized
from service.contract.settings import Settings

__all__ = ["Admin", "Principal", "Watchman", "identify"]


async def _caller(request: Request, services: UsesServices) -> Caller:
    caller = await identify(request, services)
    await services.limits.count_request(caller)
    return caller


async def identify(request: Request, services: Services) -> Caller:
    """The caller: by key, by a browser's session, or anybody on loopback where there are no keys.

    Raises Unauthorized, Forbidden, RedisError.
    """
    settings = services.settings
    if not services.keys.configured:
        _only_from_here(request)
        _check_browser(request, settings, token_needed=True)
        return NOBODY
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        caller = services.keys.find(token.strip())
    else:
        identity = read_cookie(request, settings)
        caller = (
            None
            if identity is None
            else await to_thread.run_sync(services.sessions.caller, identity)
        )
    if caller is None:
        raise Unauthorized(
            "a valid API key is needed",
            hint="send the header Authorization: Bearer KEY; in a browser, log in at /login",
        )
    _check_browser(request, settings, token_needed=scheme.lower() != "bearer")
    return caller


class Watchman:
    """Whether whoever opened a stream may still read it: a key may be revoked, a session ended."""

    def __init__(self, request: Request, services: Services, *, every_s: float = 3.0) -> None:
        self._request = request
        self._services = services
        self._every_s = every_s
        self._due = time.monotonic() + every_s

    async def lets_in(self) -> bool:
        """Looks now and then only; while Redis is away nobody is turned out."""
        if time.monotonic() < self._due:
            return True
        self._due = time.monotonic() + self._every_s
        try:
            await identify(self._request, self._services)
        except (Unauthorized, Forbidden):
            return False
        except RedisError:
            return True
        return True


def _check_browser(request: Request, settings: Settings, *, token_needed: bool) -> None:
    if request.method in SAFE or not from_browser(request, settings):
        return
    check_origin(request, settings)
    if token_needed:
        check_token(request, settings)


def _only_from_here(request: Request) -> None:
    """Without keys, serve only loopback addresses."""
    server = request.scope.get("server")
    if server is not None and server[1] is not None and not _is_loopback(str(server[0])):
        raise Forbidden(
            "no API key is configured, so only loopback addresses are served",
            code="key_required",
            hint="certserve keys create NAME, or CERTSERVE_KEYS",
        )
    # A foreign host name that resolves to loopback is an attack by a web page (DNS rebinding).
    if not _is_loopback(request.url.hostname or ""):
        raise Forbidden(
            f"no API key is configured, so nothing is served under the name {request.url.hostname}",
            code="key_required",
            hint="ask for localhost or 127.0.0.1; or certserve keys create NAME",
        )


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in ("localhost", "testserver")
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


async def _admin(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
    if not caller.admin:
        raise Forbidden("this needs an admin's key", code="admin_only")
    return caller


#: The caller, as an endpoint's parameter.
Principal = Annotated[Caller, Depends(_caller)]
#: A caller that is an admin.
Admin = Annotated[Caller, Depends(_admin)]
