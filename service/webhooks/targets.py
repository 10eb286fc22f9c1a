"""Where a webhook may go: never to an address that only this network can reach, unless allowed.

The address is looked up once, checked, and connected to, so that a name cannot be one host when it
is checked and another when it is used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterator, Sequence
from urllib.parse import SplitResult, urlsplit

from service.contract.schemas.problems import InvalidInput
from service.contract.schemas.webhook_address import PORTS
from service.contract.settings import Settings

__all__ = ["TargetRefused", "accepted_webhook", "addresses_of"]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]

#: Prefixes of IPv6 in whose last 32 bits an IPv4 address is meant (NAT64).
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))


class TargetRefused(RuntimeError):
    """The host has no address, or one that nothing may be sent to."""


def accepted_webhook(settings: Settings, url: str | None) -> str | None:
    """The ``WebhookUrl`` of a submission after a check that it may be used.

    Names are looked up when something is sent. Raises InvalidInput.
    """
    if url is None:
        return None
    if settings.webhook_secret is None:
        raise InvalidInput(
            "this service sends no webhooks, because it has no secret to sign them with",
            code="webhooks_disabled",
            hint="leave webhook out; or the operator sets CERTSERVE_WEBHOOK_SECRET",
            field="webhook",
        )
    host = urlsplit(url).hostname
    assert host is not None
    address = _literal(host)
    if address is not None and not _allowed(address, settings.webhook_allow):
        raise InvalidInput(
            f"webhooks are not sent to {host}: the address is private or reserved",
            code="webhook_target_refused",
            hint="use a public address, or have its network added to CERTSERVE_WEBHOOK_ALLOW",
            field="webhook",
        )
    return url


async def addresses_of(parts: SplitResult, allowed: _Networks) -> tuple[list[str], int]:
    """The addresses and the port to connect to. Raises TargetRefused, OSError (no such name)."""
    host, port = parts.hostname, parts.port or PORTS[parts.scheme]
    assert host is not None
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )
    addresses = [ipaddress.ip_address(str(row[4][0]).partition("%")[0]) for row in found]
    refused = [address for address in addresses if not _allowed(address, allowed)]
    # One bad address among good ones is how a name gets past a check.
    if refused or not addresses:
        raise TargetRefused(f"nothing is sent to {host} ({refused[0] if refused else 'nowhere'})")
    return list(dict.fromkeys(map(str, addresses))), port


def _literal(host: str) -> _Address | None:
    """The address that ``host`` is in itself; also in the forms that only a resolver takes."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))  # 127.1, 0x7f000001, 2130706433
    except OSError:
        return None


def _allowed(address: _Address, networks: _Networks) -> bool:
    return all(_public(meant) or _inside(meant, networks) for meant in _meanings(address))


def _meanings(address: _Address) -> Iterator[_Address]:
    """The address, or the IPv4 addresses that an IPv6 address carries through a tunnel."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
        return
    yield address
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if any(address in network for network in _NAT64):
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def _public(address: _Address) -> bool:
    return address.is_global and not (
        getattr(address, "is_site_local", False)
        or address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
    )


def _inside(address: _Address, networks: _Networks) -> bool:
    return any(address in network for network in networks)
