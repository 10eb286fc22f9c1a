"""A number of things, with their name in the singular or the plural."""

from __future__ import annotations

__all__ = ["counted"]


def counted(count: int, thing: str, things: str | None = None) -> str:
    """``1 box``, ``2 boxes``; without ``things`` the plural is the singular with an s."""
    return f"{count} {thing if count == 1 else things or thing + 's'}"
