"""How much memory a worker uses, its horse included, and how much of its GPU's is in use."""

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
    """Resident bytes of a process and all its descendants."""
    total = 0
    try:
        total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = (task / "children").read_text().split()
            total += sum(_resident(int(child)) for child in children)
    except (OSError, IndexError):
        return total  # it has just ended
    return total


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
