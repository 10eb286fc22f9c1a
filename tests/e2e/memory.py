"""The most memory that processes held, as the kernel counts it (VmHWM: it misses no peak).

A forked process counts the pages that it shares with its template as well.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

__all__ = ["MemoryWatch", "peak_bytes"]

_INTERVAL_S = 0.05


def peak_bytes(pid: int) -> int:
    """Most resident memory that a process ever held; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _children(pid: int) -> Iterator[int]:
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from _children(int(child))
    except (FileNotFoundError, ProcessLookupError):
        return


class MemoryWatch:
    """Watches a process' descendants; ``peaks`` is name or module -> most bytes of any such."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self.peaks: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            for root in self._pids:
                for pid in (root, *_children(root)):
                    try:
                        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                        name = Path(f"/proc/{pid}/comm").read_text().strip()
                    except (FileNotFoundError, ProcessLookupError):
                        continue
                    if name.startswith("python"):
                        module = next((word for word in command if b"workers." in word), b"other")
                        name = module.decode(errors="replace")
                    self.peaks[name] = max(self.peaks.get(name, 0), peak_bytes(pid))
