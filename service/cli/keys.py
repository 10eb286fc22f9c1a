"""``certserve keys``: works on the data directory, a running service notices.

``create``, ``list`` and ``revoke`` are about API keys, ``signing`` about the key that reports are
signed with.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from service.access.keys import KeyRing
from service.access.signing_key import SigningKeys
from service.cli.remote.connection import show_json, show_table
from service.contract.settings import Settings
from service.reports.signing import ALGORITHM

__all__ = ["add_parser", "ring_of"]


def ring_of(data_dir: Path, given: tuple[str, ...] = ()) -> KeyRing:
    """The keys of a data directory."""
    return KeyRing(data_dir.absolute() / "keys", given)


def add_parser(commands: Any, data_dir: Path) -> None:
    """Add ``keys`` to the commands; ``data_dir`` is the default."""
    keys = commands.add_parser("keys", help="API keys, and the key that signs reports")
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key; it is printed once")
    create.add_argument("name", help="whose key it is, for people")
    create.add_argument(
        "--admin", action="store_true", help="an admin's key: it sees what every key made"
    )
    create.set_defaults(run=_create)
    listing = actions.add_parser("list", help="list the keys, without their secrets")
    listing.set_defaults(run=_list)
    revoke = actions.add_parser("revoke", help="revoke a key, effective at once")
    revoke.add_argument("id", help="the id that keys list shows")
    revoke.set_defaults(run=_revoke)
    signing = actions.add_parser("signing", help="show the public keys that sign reports")
    signing.add_argument("--rotate", action="store_true", help="make a new key first")
    signing.set_defaults(run=_signing)
    for action in (create, listing, revoke, signing):
        action.add_argument("--data-dir", type=Path, default=data_dir)
        action.add_argument("--json", action="store_true")


def _create(options: argparse.Namespace, console: Console) -> int:
    ring = ring_of(options.data_dir)
    key, record = ring.create(options.name, admin=options.admin)
    if options.json:
        return show_json({"key": key, **_record(ring, record["id"])})
    # The key alone on stdout, so that a script can take it; the rest is for people.
    print(key)
    notes = Console(stderr=True, highlight=False)
    notes.print(f"key {record['id']} for {record['name']}; it is not shown again")
    return 0


def _list(options: argparse.Namespace, console: Console) -> int:
    records = ring_of(options.data_dir).records()
    if options.json:
        return show_json(records)
    rows = [
        (
            record["id"], record["name"], "yes" if record["admin"] else "",
            record["created_at"], record["revoked_at"] or "",
        )
        for record in records
    ]  # fmt: skip
    return show_table(console, ("id", "name", "admin", "created", "revoked"), rows)


def _revoke(options: argparse.Namespace, console: Console) -> int:
    ring = ring_of(options.data_dir)
    ring.revoke(options.id)
    if options.json:
        return show_json(_record(ring, options.id))
    console.print(f"key {options.id} is revoked", highlight=False)
    return 0


def _record(ring: KeyRing, identity: str) -> dict[str, Any]:
    """What ``keys list`` says of a key."""
    return next(record for record in ring.records() if record["id"] == identity)


def _signing(options: argparse.Namespace, console: Console) -> int:
    secret = Settings().signing_key_file
    keys = SigningKeys(options.data_dir.absolute() / "signing", secret)
    public = keys.rotate() if options.rotate else keys.public()
    if options.json:
        # As GET /keys/signing answers.
        return show_json({"algorithm": ALGORITHM, "public_key": public, "former": keys.former()})
    print(public)
    for key in keys.former():
        console.print(f"before: {key}", highlight=False)
    return 0
