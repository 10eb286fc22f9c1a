"""Records of uploads as the API shows them, one or a page."""

from __future__ import annotations

from typing import Any

from service.access.keys import Caller
from service.api.services import Services
from service.contract.schemas.problems import InvalidInput, NotFound
from service.contract.storage.store import Collection

__all__ = ["find_record", "own_names", "owners_of", "record_page", "visible_to"]

_NOUNS = {"models": ("model", "unknown_model"), "datasets": ("data set", "unknown_dataset")}


def owners_of(record: dict[str, Any]) -> dict[str, list[str]]:
    """Owners of an upload and the names each gave it; uploads without keys have owner ''."""
    found: dict[str, list[str]] = record.get("owners") or {"": record["names"]}
    return found


def visible_to(record: dict[str, Any], caller: Caller) -> bool:
    """Whether the upload is the caller's, or one of the callers' that it may see."""
    return any(caller.sees(owner) for owner in owners_of(record))


def own_names(record: dict[str, Any], caller: Caller) -> list[str]:
    """The names that the caller gave it (an admin: all names); none where it may not see it."""
    found = [names for owner, names in owners_of(record).items() if caller.sees(owner)]
    return list(dict.fromkeys(name for names in found for name in names))


def find_record(
    services: Services, collection: Collection, identity: str, caller: Caller
) -> dict[str, Any]:
    """The record of an upload as the caller sees it. Raises NotFound."""
    record = services.store.record(collection, identity)
    if record is None or not visible_to(record, caller):
        noun, code = _NOUNS[collection]
        raise NotFound(f"there is no {noun} {identity[:100]!r}", code=code)
    return _seen(record, caller)


def record_page(
    services: Services, collection: Collection, cursor: str | None, limit: int, caller: Caller
) -> tuple[list[dict[str, Any]], str | None]:
    """Records, newest first, behind the one whose id is ``cursor``."""
    records = [r for r in services.store.records(collection) if visible_to(r, caller)]
    start = 0
    if cursor is not None:
        places = [place for place, record in enumerate(records) if record["id"] == cursor]
        if not places:
            raise InvalidInput(
                "the cursor is not valid: give the next_cursor of an earlier page",
                code="invalid_cursor",
                field="cursor",
            )
        start = places[0] + 1
    page = [_seen(record, caller) for record in records[start : start + limit]]
    return page, page[-1]["id"] if start + limit < len(records) else None


def _seen(record: dict[str, Any], caller: Caller) -> dict[str, Any]:
    names = own_names(record, caller)
    # Names that other users gave are not shown.
    name = record["name"] if record["name"] in names else names[0]
    return {**record, "name": name, "names": names}
