"""Which service a command talks to, and how it prints: a table for people, JSON for programs."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from service.cli.terminal import printable
from service.client import Client
from service.supervisor.instance_lock import StartError, running_service

__all__ = ["add_connection", "connected", "show_json", "show_table"]


def add_connection(parser: argparse.ArgumentParser, data_dir: Path) -> None:
    """``--url``, ``--key``, ``--data-dir`` and ``--json``."""
    parser.add_argument("--url", default=os.environ.get("CERTSERVE_URL"))
    parser.add_argument("--key", default=os.environ.get("CERTSERVE_KEY"))
    parser.add_argument(
        "--data-dir", type=Path, default=data_dir, help="whose service is meant without --url"
    )
    parser.add_argument("--json", action="store_true", help="print the service's own answer")


@contextmanager
def connected(options: argparse.Namespace) -> Iterator[Client]:
    """A client of the service that ``--url`` names or that runs on the data directory.

    Nothing is started here: what a new service would show is nothing. Raises StartError.
    """
    url = options.url
    if url is None:
        running = running_service(options.data_dir)
        if running is None:
            raise StartError(
                f"no service runs on {options.data_dir}: start one with certserve serve, "
                "or name one with --url"
            )
        url = running["url"]
    with Client(url, key=options.key) as client:
        yield client


def show_json(answer: Any) -> int:
    """Print an answer of the service; exit status 0."""
    print(json.dumps(answer, indent=2))
    return 0


def show_table(console: Console, titles: Sequence[str], rows: Sequence[Sequence[object]]) -> int:
    """Print rows of texts, none of which is markup, obeyed or cut short; exit status 0."""
    table = Table(*(Column(title, overflow="fold") for title in titles))
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    console.print(table)
    return 0
