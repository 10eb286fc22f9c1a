"""``certserve serve``: the service with its workers, until it is told to stop."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from service.cli.keys import ring_of
from service.cli.settings_check import unknown_settings
from service.contract.logs import configure_logging
from service.contract.settings import Settings
from service.supervisor.instance_lock import StartError
from service.supervisor.supervisor import Supervisor, is_loopback

__all__ = ["add_parser"]

logger = logging.getLogger(__name__)


def add_parser(commands: Any, settings: Settings) -> None:
    """Add ``serve`` to the commands; ``settings`` has the defaults."""
    serve = commands.add_parser("serve", help="run the service until SIGTERM or SIGINT")
    serve.add_argument("--host", default=settings.host)
    serve.add_argument(
        "--port", type=_count(65535), default=settings.port, help="0 takes a free one"
    )
    serve.add_argument("--data-dir", type=Path, default=settings.data_dir)
    serve.add_argument("--workers", type=_count(1000), default=1)
    serve.set_defaults(run=_serve)


def _count(most: int) -> Callable[[str], int]:
    """An argparse type: a number from 0 to ``most``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) > most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {most}")
        return int(text)

    return parse


def _serve(options: argparse.Namespace, console: Console) -> int:
    settings = Settings(data_dir=options.data_dir)
    given = tuple(key.get_secret_value() for key in settings.keys)
    ring = ring_of(options.data_dir, given)  # raises where a given key is too short
    configure_logging(settings.log_format)
    for warning in unknown_settings():
        logger.warning("%s", warning)
    if not is_loopback(options.host) and not ring.configured:
        raise StartError(
            f"{options.host} is not a loopback address and no API key is configured; "
            f"certserve keys create NAME --data-dir {options.data_dir}, or bind 127.0.0.1"
        )
    supervisor = Supervisor(
        data_dir=options.data_dir,
        host=options.host,
        port=options.port,
        workers=options.workers,
        settings=settings,
    )
    return supervisor.run()
