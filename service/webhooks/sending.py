"""One delivery: signed as https://www.standardwebhooks.com describes it, sent once."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from service.contract.settings import Settings
from service.contract.version import release
from service.webhooks.targets import TargetRefused, addresses_of

__all__ = ["Answer", "Sender", "signature"]

_PREFIX = "whsec_"


@dataclass(frozen=True)
class Answer:
    """The result of a try: the HTTP status, or why there is none."""

    status: int | None
    reason: str

    @property
    def delivered(self) -> bool:
        """Whether the receiver accepted the message."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def unwanted(self) -> bool:
        """Whether the receiver asks for no further messages (410 Gone)."""
        return self.status == 410


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The header ``webhook-signature``: HMAC-SHA256 over id, timestamp and body.

    ``secret`` is ``whsec_`` and base64, or else used as it is.
    """
    content = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.new(_key(secret), content, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def _key(secret: str) -> bytes:
    if secret.startswith(_PREFIX):
        try:
            return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            pass
    return secret.encode()


class Sender:
    """Sends with the settings' secret, limits and certificates."""

    def __init__(self, settings: Settings) -> None:
        assert settings.webhook_secret is not None
        self._secret = settings.webhook_secret.get_secret_value()
        self._allowed = settings.webhook_allow
        self._timeout_s = settings.webhook_timeout_s
        authorities = settings.webhook_ca_file
        self._context = ssl.create_default_context(
            cafile=None if authorities is None else str(authorities)
        )

    async def send(self, url: str, message_id: str, timestamp: int, body: bytes) -> Answer:
        """One POST within the time limit, whatever the receiver does; never raises."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(url, message_id, timestamp, body)
        except TimeoutError:
            return Answer(None, f"no answer within {self._timeout_s:g} s")
        except (TargetRefused, OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            return Answer(None, f"{type(error).__name__}: {error}"[:300])

    async def _post(self, url: str, message_id: str, timestamp: int, body: bytes) -> Answer:
        parts = urlsplit(url)
        addresses, port = await addresses_of(parts, self._allowed)
        headers = {
            "Host": parts.netloc,
            "Content-Type": "application/json",
            "User-Agent": f"certserve/{release()}",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._secret, message_id, timestamp, body),
        }
        # The certificate must be the name's, although a checked address is connected to.
        name = {"sni_hostname": parts.hostname}
        async with httpx.AsyncClient(
            verify=self._context, trust_env=False, follow_redirects=False, timeout=self._timeout_s
        ) as client:
            for address in addresses:
                target = httpx.URL(url).copy_with(host=address, port=port)
                request = client.build_request(
                    "POST", target, content=body, headers=headers, extensions=name
                )
                try:
                    answer = await client.send(request, stream=True)
                except httpx.ConnectError:
                    if address == addresses[-1]:
                        raise
                    continue
                # Only the status is read; the body is ignored.
                await answer.aclose()
                return Answer(answer.status_code, f"status {answer.status_code}")
        raise TargetRefused("there is no address to connect to")
