"""The address of a webhook, as a field of submissions."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

__all__ = ["PORTS", "WebhookUrl"]

_MAX_URL = 2000
#: Default port by scheme.
PORTS = {"http": 80, "https": 443}


def _checked(url: str) -> str:
    """``url``, if it is an http(s) address without a user, a fragment or odd characters."""
    wrong = PydanticCustomError(
        "invalid_webhook", "an address like https://example.org/hook is needed", {}
    )
    if not (url.isascii() and url.isprintable()) or " " in url or "\\" in url:
        raise wrong
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in PORTS or not parts.hostname or port == 0:
        raise wrong
    if parts.fragment or "@" in parts.netloc:
        raise wrong
    return url


#: Where to say that a job has ended: a field of submissions.
WebhookUrl = Annotated[
    str,
    Field(max_length=_MAX_URL, description="Gets a signed message when the job has ended"),
    AfterValidator(_checked),
]
