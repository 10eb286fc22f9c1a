"""Authentication: the one place where a request gets its caller. Keys are never logged or returned.

Every endpoint that touches jobs, models or data sets asks for its ``Principal``; /healthz, /readyz
and the documentation do not.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated

from fastapi import Depends, Request

from service.access.keys import NOBODY, Caller
from service.api.services import Services, UsesServices
from service.contract.schemas.problems import Forbidden, Unauthorized

__all__ = ["Admin", "Principal"]

_UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})


async def _caller(request: Request, services: UsesServices) -> Caller:
    caller = _identify(request, services)
    await services.limits.count_request(caller)
    return caller


def _identify(request: Request, services: Services) -> Caller:
    if not services.keys.configured:
        _only_from_here(request)
        return NOBODY
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    caller = services.keys.find(token.strip()) if scheme.lower() == "bearer" else None
    if caller is None:
        raise Unauthorized(
            "a valid API key is needed", hint="send the header Authorization: Bearer KEY"
        )
    return caller


def _only_from_here(request: Request) -> None:
    """Without keys, serve only loopback addresses, and refuse requests of other sites' pages."""
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
    # Browsers send this header with a form that another site's page posts here.
    if request.method in _UNSAFE and request.headers.get("sec-fetch-site") == "cross-site":
        raise Forbidden(
            "the request comes from another site's page, which is refused", code="cross_site"
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
