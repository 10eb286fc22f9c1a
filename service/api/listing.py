"""Records of uploads as the API shows them, one or a page."""

from __future__ import annotations

from typing import Any

from service.contract.problems import InvalidInput, NotFound
from service.contract.store import Collection
from service.services import Services

__all__ = ["find_record", "record_page"]

_NOUNS = {"models": ("model", "unknown_model"), "datasets": ("data set", "unknown_dataset")}


def find_record(services: Services, collection: Collection, identity: str) -> dict[str, Any]:
    """The record of an upload. Raises NotFound."""
    record = services.store.record(collection, identity)
    if record is None:
        noun, code = _NOUNS[collection]
        raise NotFound(f"there is no {noun} {identity[:100]!r}", code=code)
    return record


def record_page(
    services: Services, collection: Collection, cursor: str | None, limit: int
) -> tuple[list[dict[str, Any]], str | None]:
    """Records, newest first, behind the one whose id is ``cursor``."""
    records = list(services.store.records(collection))
    start = 0
    if cursor is not None:
        places = [place for place, record in enumerate(records) if record["id"] == cursor]
        if not places:
            raise InvalidInput("this cursor is none of ours", code="invalid_cursor", field="cursor")
        start = places[0] + 1
    page = records[start : start + limit]
    return page, page[-1]["id"] if start + limit < len(records) else None
