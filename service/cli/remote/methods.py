"""``certserve methods``: what ``--method`` may be. Needs no service."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from service.cli.remote.connection import show_json, show_table
from service.contract.catalogue.methods import METHODS
from service.contract.catalogue.training_methods import TRAINING_METHODS

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    methods = commands.add_parser("methods", help="list certification and training methods")
    methods.add_argument("--json", action="store_true", help="what GET /methods answers of them")
    methods.set_defaults(run=_methods)


def _methods(options: argparse.Namespace, console: Console) -> int:
    certifying = [method.described() for method in METHODS.values()]
    training = [method.described() for method in TRAINING_METHODS.values()]
    if options.json:
        return show_json({"items": certifying, "training": training})
    for title, rows in (("certify", certifying), ("train", training)):
        console.print(title, style="bold")
        columns = [name for name in ("name", "title", "norms", "cost", "source") if name in rows[0]]
        show_table(console, columns, [[_text(row.get(name)) for name in columns] for row in rows])
    return 0


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value or "")
