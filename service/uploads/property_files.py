"""Property files as far as their bytes tell: VNN-LIB is text of bounded size."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from service.contract.schemas.problems import InvalidInput
from service.uploads.damage import EMPTY_FILE
from service.uploads.suffixes import format_of

__all__ = ["MAX_PROPERTY_BYTES", "inspect_property", "property_format"]

#: Larger files are refused: an image of 150,000 numbers has a property of 20 MB.
MAX_PROPERTY_BYTES = 64 * 2**20

PROPERTY_SUFFIXES: dict[str, Literal["vnnlib"]] = {".vnnlib": "vnnlib"}


def property_format(filename: str) -> Literal["vnnlib"]:
    """The format that the file's suffix names. Raises Unsupported."""
    return format_of(filename, PROPERTY_SUFFIXES, noun="property", field="property")


def inspect_property(path: Path) -> None:
    """Raises InvalidInput where the bytes at ``path`` are no text; a worker parses them."""
    with path.open("rb") as file:
        first = file.read(4096)
    if not first.strip():
        raise InvalidInput(
            "the property file is empty", code="empty_file", hint=EMPTY_FILE, field="property"
        )
    if not first.lstrip().startswith((b"(", b";")) or b"\0" in first:
        raise InvalidInput(
            "the property is no VNN-LIB text: that begins with '(' or a comment",
            code="invalid_vnnlib",
            hint="unpack a compressed file first",
            field="property",
        )
