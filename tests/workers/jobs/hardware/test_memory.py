"""A container's memory limit counts, wherever its control group is mounted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers.jobs.hardware.memory import total_memory

HOST = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
GIB = 2**30


def tree(root: Path, cgroup: str, **files: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {"memory.max": str(GIB)}, GIB),
        ("0::/\n", {"memory.max": "max"}, HOST),
        ("0::/a/b\n", {"a/memory.max": str(GIB), "a/b/memory.max": "max"}, GIB),
        ("0::/a/b\n", {"memory.max": str(2 * GIB), "a/b/memory.max": str(GIB)}, GIB),
        # Inside a container the path of the host's tree leads nowhere.
        ("0::/docker/0123\n", {"memory.max": str(GIB)}, GIB),
        ("0::/../../x\n", {"memory.max": str(GIB)}, GIB),
        ("4:cpu,memory:/x\n", {"memory/memory.limit_in_bytes": str(GIB)}, GIB),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, HOST),
        ("4:cpu:/\n", {"memory.max": str(GIB)}, HOST),
        ("", {}, HOST),
    ],
)
def test_the_smallest_limit_counts(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: int
) -> None:
    assert total_memory(tree(tmp_path, cgroup, **files)) == expected


def test_without_control_groups_it_is_the_hosts(tmp_path: Path) -> None:
    assert total_memory(tmp_path) == HOST
    assert 0 < total_memory() <= HOST
