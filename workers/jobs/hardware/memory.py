"""How much memory there is for this process: the host's, or what a container may use of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["total_memory"]


def total_memory(root: Path = Path("/")) -> int:
    """Bytes: the smallest limit of this process' control groups (v1 or v2), at most the host's.

    ``root`` is where ``proc`` and ``sys`` lie. Memory in use is ignored, so that the same job gives
    the same report.
    """
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([host, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    mount = root / "sys/fs/cgroup"
    for folder, name in _groups(root, mount):
        # A parent's limit holds for its children; inside a container the own path may not be seen.
        while folder.is_relative_to(mount):
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                text = ""
            if text.isdecimal() and int(text) > 0:
                yield int(text)
            folder = folder.parent


def _groups(root: Path, mount: Path) -> Iterator[tuple[Path, str]]:
    """Folder of each control group that limits memory, and the name of its limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inside = path.lstrip("/")
        if ".." in Path(inside).parts:
            inside = ""
        if not controllers:
            yield mount / inside, "memory.max"
        elif "memory" in controllers.split(","):
            yield mount / "memory" / inside, "memory.limit_in_bytes"
