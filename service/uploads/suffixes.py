"""The format of an upload, by the suffix of its file name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from service.contract.schemas.problems import Unsupported

__all__ = ["format_of"]

Format = TypeVar("Format", bound=str)


def format_of(filename: str, formats: Mapping[str, Format], *, noun: str, field: str) -> Format:
    """The format that the suffix stands for; ``noun``: what the file is. Raises Unsupported."""
    found = formats.get(Path(filename).suffix.lower())
    if found is None:
        raise Unsupported(
            f"the suffix of {filename[:200]!r} names no known {noun} format",
            hint=f"known suffixes: {', '.join(formats)}",
            field=field,
        )
    return found
