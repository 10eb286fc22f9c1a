"""Headers that every answer carries, and the count of answers: one ASGI layer around the app."""

from __future__ import annotations

import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["SecurityHeaders"]

#: What an answer says unless its endpoint said something else.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
#: The page of the documentation loads its viewer from a public address.
_DOCS = (
    "default-src 'none'; script-src https://cdn.jsdelivr.net 'unsafe-inline'; "
    "style-src https://cdn.jsdelivr.net 'unsafe-inline'; connect-src 'self'; "
    "img-src data: https://fastapi.tiangolo.com; frame-ancestors 'none'"
)


class SecurityHeaders:
    """Adds the headers and counts the answer; streams pass through untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        began = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if scope["path"] in ("/docs", "/redoc"):
                    headers.setdefault("Content-Security-Policy", _DOCS)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                services = getattr(scope["app"].state, "services", None)
                if services is not None:
                    seconds = time.perf_counter() - began
                    services.metrics.count_answer(scope["method"], message["status"], seconds)
            await send(message)

        await self._app(scope, receive, send_with_headers)
