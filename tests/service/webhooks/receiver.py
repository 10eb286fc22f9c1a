"""A real HTTP server that takes webhooks, and answers as it is told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

__all__ = ["SECRET", "Received", "Receiver", "check_signature"]

KEY = b"0123456789abcdef0123456789abcdef"
SECRET = "whsec_" + base64.b64encode(KEY).decode()


@dataclass(frozen=True)
class Received:
    """One request, and when it came."""

    at: float
    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Has a loopback port, and listens on it inside ``with``; before, connections are refused.

    ``answers`` are the next statuses, then 204; each is given after ``delay_s``.
    """

    def __init__(self, *, context: ssl.SSLContext | None = None) -> None:
        self.received: list[Received] = []
        self.answers: list[int] = []
        self.delay_s = 0.0
        self._closing = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.received.append(Received(time.time(), self.path, headers, body))
                outer._closing.wait(outer.delay_s)
                status = outer.answers.pop(0) if outer.answers else 204
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                with suppress(ConnectionError):  # the sender has waited for long enough
                    self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                return

        address = ("127.0.0.1", 0)
        self._server = http.server.ThreadingHTTPServer(address, Handler, bind_and_activate=False)
        self._server.server_bind()
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Receiver:
        self._server.server_activate()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()


def check_signature(message: Received) -> None:
    """By hand, as the Standard Webhooks specification says."""
    timestamp = message.headers["webhook-timestamp"]
    signed = f"{message.headers['webhook-id']}.{timestamp}.".encode() + message.body
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert message.headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(timestamp) - message.at) < 60
