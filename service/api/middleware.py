"""Headers of every response, and the count of responses: one ASGI layer around the app."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["DOCUMENT_HEADERS", "SecurityHeaders"]

#: Headers of a response unless its endpoint set them.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

#: Of reports and charts, which hold names that users chose: styles and pictures of their own, and
#: nothing that a browser would run or fetch.
DOCUMENT_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Vary": "Accept",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox",
}


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """The headers in ASGI's form (lower-case names), encoded once."""
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


_ADDED = _raw(_HEADERS)


class SecurityHeaders:
    """Adds the headers and counts the response; streamed bodies pass through unchanged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        began = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                present = {name for name, _ in headers}
                message["headers"] = [
                    *headers,
                    *((name, value) for name, value in _ADDED if name not in present),
                ]
                services = getattr(scope["app"].state, "services", None)
                if services is not None:
                    seconds = time.perf_counter() - began
                    services.metrics.count_answer(scope["method"], message["status"], seconds)
            await send(message)

        await self._app(scope, receive, send_with_headers)
