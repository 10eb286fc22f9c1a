"""Which program computes: its release, and in a checkout a digest of the sources of results."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["engine_version", "release"]

#: Folders whose code decides what a result is. An API that is installed alone does not have them.
_SOURCES = ("models", "workers/jobs", "workers/verification", "workers/training")


def release() -> str:
    """The installed release, ``0`` where none is."""
    try:
        return version("certserve")
    except PackageNotFoundError:
        return "0"


@cache
def engine_version() -> str:
    """The program version: equal jobs have equal results while it stays the same."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return f"{release()}+{digest.hexdigest()[:12]}"
