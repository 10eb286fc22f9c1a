"""The API as a child of the supervisor: serves on a socket that the supervisor holds open.

So no other process can take the port, and connections that arrive while the API restarts wait in
the socket's queue instead of being refused.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

import uvicorn

from service.contract.logs import configure_logging
from service.contract.settings import Settings

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve ``service.console.app:create_app`` on the listening socket of the given descriptor."""
    (descriptor,) = arguments or sys.argv[1:]
    listener = socket.socket(fileno=int(descriptor))
    configure_logging(Settings().log_format)
    config = uvicorn.Config(
        "service.console.app:create_app",
        factory=True,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=3,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
