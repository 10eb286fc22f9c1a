"""The journal without the lines of deleted jobs.

Only files without a living writer are compacted: a writer holds a lock on its file. A file is
replaced as a whole or not at all, and the line that records a deletion is removed last, once no
other line of its job is left in any file. So a deleted job never comes back, even after a crash.
"""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from service.contract.storage.files import atomic_write, locked, sync_folder
from service.contract.storage.store import Store
from service.contract.times import now

__all__ = ["compact"]

_log = logging.getLogger(__name__)

#: A file that was written to within this time is left alone.
_REST_S = 3600.0
#: Rewriting is worth it from this share of a file on.
_WORTH = 0.25


def compact(store: Store, *, rest_s: float = _REST_S) -> int:
    """Remove what deleted jobs left in the journal; the number of lines. Raises StorageFull."""
    folder = store.folder("journal")
    removed = 0
    with locked(folder / ".compacting"):
        deleted: set[str] = set()
        named: set[str] = set()
        for path in sorted(folder.glob("*.jsonl")):
            for op, job_id in map(_subject, _lines(path)):
                (deleted if op == "delete" else named).add(job_id)
        # The folder goes after the note: what is still there is being removed.
        gone = {job_id for job_id in deleted if not (store.data_dir / "jobs" / job_id).exists()}
        for path in sorted(folder.glob("*.jsonl")):
            if path.stat().st_mtime < now() - rest_s:
                removed += _compact_file(path, gone, named)
    return removed


def _compact_file(path: Path, gone: set[str], named: set[str]) -> int:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return 0  # its writer lives
        lines = list(_lines(path))
        kept = [line for line in lines if not _superfluous(line, gone, named)]
        if sum(map(len, kept)) > (1 - _WORTH) * sum(map(len, lines)):
            return 0
        if kept:
            atomic_write(path, b"".join(kept))
        else:
            path.unlink()
            sync_folder(path.parent)
    _log.info("%s: %d lines of deleted jobs removed", path.name, len(lines) - len(kept))
    return len(lines) - len(kept)


def _superfluous(line: bytes, gone: set[str], named: set[str]) -> bool:
    op, job_id = _subject(line)
    return job_id in gone and (op != "delete" or job_id not in named)


def _lines(path: Path) -> Iterator[bytes]:
    """Whole lines; a torn last one was never acknowledged."""
    with path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))


def _subject(line: bytes) -> tuple[str, str]:
    """What a line is and of which job; ("", "") where it cannot be read: it stays."""
    try:
        entry = json.loads(line)
        op = str(entry["op"])
        ids = {"delete": lambda: entry["id"], "bind": lambda: entry["job_id"]}
        return op, str(ids.get(op, lambda: entry["job"]["id"])())
    except (ValueError, KeyError, TypeError):
        return "", ""
