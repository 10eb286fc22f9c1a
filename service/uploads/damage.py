"""What to do about a file that is not what its name says: it was seldom meant to be so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["EMPTY_FILE", "other_file", "what_to_do"]

EMPTY_FILE = "see whether the file on your machine holds anything: was writing it cut off?"

#: How a file begins -> what it is, and what to do.
_OTHERS = (
    (b"version https://git-lfs", "this is a pointer of Git LFS, not the file: git lfs pull"),
    (b"<", "this looks like a web page, as a failed download leaves it: fetch the file again"),
)
#: And a model, which no archive is.
_ARCHIVES = (
    (b"PK\x03\x04", "this is a zip archive: unpack it, and send the file in it"),
    (b"\x1f\x8b", "this is compressed with gzip: unpack it first"),
)


def other_file(path: Path) -> str | None:
    """What the file is instead of an upload, with what to do; None where that cannot be told."""
    return _found(path, _OTHERS)


def what_to_do(path: Path, check: str) -> str:
    """A hint for a model file that cannot be read; ``check``: Python that reads it on the user's
    machine."""
    return _found(path, (*_OTHERS, *_ARCHIVES)) or (
        f"see whether `python -c '{check}'` reads it on your machine: if it does, send it again; "
        "if not, write or fetch it again"
    )


def _found(path: Path, beginnings: Sequence[tuple[bytes, str]]) -> str | None:
    with path.open("rb") as file:
        first = file.read(64).lstrip()
    return next((hint for begin, hint in beginnings if first.startswith(begin)), None)
