"""How much memory a worker uses, its work horse included, and how much of its GPU's is in use."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path

__all__ = ["usage"]

logger = logging.getLogger(__name__)

_PAGE = os.sysconf("SC_PAGE_SIZE")
_QUERY = ("--query-gpu=memory.used", "--format=csv,noheader,nounits")


def usage(device: str) -> dict[str, str]:
    """Facts for the heartbeat: ``memory_bytes``, and ``gpu_memory_bytes`` where there is a GPU."""
    facts = {"memory_bytes": str(_resident(os.getpid()))}
    used = None if device == "cpu" else _gpu_memory()
    if used is not None:
        facts["gpu_memory_bytes"] = str(used)
    return facts


def _resident(pid: int) -> int:
    """Resident bytes of a process and all its descendants; what they share is counted once."""
    total = 0
    try:
        total += _own_part(pid)
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = (task / "children").read_text().split()
            total += sum(_resident(int(child)) for child in children)
    except (OSError, IndexError):
        return total  # it has just ended
    return total


def _own_part(pid: int) -> int:
    """Resident bytes, each page divided by the number of processes that have it.

    Where the kernel does not report that, nothing is taken as shared.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def _gpu_memory() -> int | None:
    """Bytes in use on the first visible GPU; None where the driver's tool is not there."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    try:
        answer = subprocess.run(
            [tool, *(["--id", chosen] if chosen else []), *_QUERY],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return int(answer.stdout.splitlines()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        logger.debug("no GPU memory known: %s", error)
        return None
