"""How many processes the kernel has killed for want of memory, where this process is counted.

A kill by the kernel and one by somebody's hand look alike to the parent: SIGKILL. The counter of
the memory cgroup, that of the container, or the machine's tells them apart. It counts other
processes, too: one that is killed within the same seconds makes a kill by hand look like want of
memory.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["oom_kills"]


def oom_kills(root: Path = Path("/")) -> int | None:
    """The count of the first file there is: this process's cgroup, the container's, the machine's;
    None where none can be read (before Linux 4.13). ``root``: of the file system."""
    for path in _files(root):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, count = line.partition(" ")
            if name == "oom_kill" and count.isdecimal():
                return int(count)
    return None


def _files(root: Path) -> list[Path]:
    """Version 2, version 1 (in a container its own cgroup may be mounted as the root), machine."""
    mounted = root / "sys" / "fs" / "cgroup"
    try:
        rows = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        rows = []
    found = []
    for row in rows:
        _, _, rest = row.partition(":")
        controllers, _, path = rest.partition(":")
        inner = path.lstrip("/")
        if controllers == "":
            found += [mounted / inner / "memory.events", mounted / "memory.events"]
        elif "memory" in controllers.split(","):
            one = mounted / "memory"
            found += [one / inner / "memory.oom_control", one / "memory.oom_control"]
    return [*found, root / "proc" / "vmstat"]
