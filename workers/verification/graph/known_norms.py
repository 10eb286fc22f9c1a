"""Norms that an earlier compilation of the same network has proved, in a file by its digest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["known_norms"]

#: Changes whenever a norm may come out otherwise, so that cached norms are made anew.
NORMS_VERSION = 6


@contextmanager
def known_norms(cache_dir: Path | None, digest: str) -> Iterator[dict[str, list[float]]]:
    """Pairs of norms by name; what is added is kept, also where the time runs out in between.

    digest: ``Network.graph_digest``. Without a folder nothing is known, and nothing kept.
    """
    if cache_dir is None:
        yield {}
        return
    path = cache_dir / f"norms-{NORMS_VERSION}-{digest.removeprefix('sha256:')}.json"
    known = _stored(path)
    before = len(known)
    try:
        yield known
    finally:
        # Where the time ran out, the next compilation goes on from here.
        if len(known) > before:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.{id(known)}.tmp")
            temporary.write_text(json.dumps(known))
            temporary.replace(path)


def _stored(path: Path) -> dict[str, list[float]]:
    """What an earlier compilation wrote; nothing where that is missing or damaged."""
    try:
        stored = json.loads(path.read_text())
        return {str(key): [float(row[0]), float(row[1])] for key, row in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError, IndexError):
        return {}
