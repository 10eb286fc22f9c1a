"""What is known of uploads: one JSON object each, with the names and owners it gained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from service.contract.times import now

__all__ = ["Listing", "read_object", "with_owner"]


def with_owner(
    known: dict[str, Any] | None, record: dict[str, Any], *, owner: str, own: bool
) -> dict[str, Any]:
    """``record`` (with ``name``) merged into the ``known`` one: owners and names are added."""
    name = record["name"]
    merged = {"names": [], "owners": {}, "own": False, **(known or record)}
    owners = {who: list(names) for who, names in merged["owners"].items()}
    if known is not None and not owners:
        owners[""] = list(known["names"])  # from before there were owners
    names = owners.setdefault(owner, [])
    merged["names"] = list(dict.fromkeys([*merged["names"], name]))
    names[:] = dict.fromkeys([*names, name])
    merged |= {"owners": owners, "own": merged["own"] or own}
    if "files" in record:  # a training knows more than an upload of the same bytes
        merged["files"] = {**merged.get("files", {}), **record["files"]}
    return merged


class Listing:
    """The records in a folder, newest first; read again only when the folder has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: Time of the folder's last change, time of reading, records; replaced as a whole.
        self._known: tuple[float, float, list[dict[str, Any]]] | None = None

    def records(self) -> list[dict[str, Any]]:
        """All of them."""
        changed = self._folder.stat().st_mtime
        known = self._known
        # Two changes within one tick of the disk's clock look alike: trust only an old time.
        if known is None or known[0] != changed or known[1] - changed < 1.0:
            looked = now()
            found = [
                record
                for path in self._folder.glob("*.json")
                if (record := read_object(path)) is not None
            ]
            found.sort(key=lambda record: (record["created_at"], record["id"]), reverse=True)
            known = self._known = (changed, looked, found)
        return known[2]


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in ``path``, or None where there is no such file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    assert isinstance(value, dict), path
    return value
