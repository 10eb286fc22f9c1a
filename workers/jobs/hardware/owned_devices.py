"""The devices that a worker owns: GPUs, or as many processes on a processor.

A training on several devices is done by a worker that owns as many. The worker itself imports no
torch, so this reads settings and the host.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

from service.contract.settings import Settings

__all__ = ["hide_other_gpus", "owned_devices"]

VISIBLE = "CUDA_VISIBLE_DEVICES"


def owned_devices(settings: Settings, devices: Path = Path("/dev")) -> int:
    """How many: those that CERTSERVE_DEVICES names; else one GPU, or every processor.

    ``devices`` is where the driver's files of GPUs lie.
    """
    if settings.devices:
        return len(settings.devices)
    hidden = os.environ.get(VISIBLE) == ""
    gpu = settings.device == "cuda" or (
        settings.device == "auto" and not hidden and any(devices.glob("nvidia[0-9]*"))
    )
    return 1 if gpu else len(os.sched_getaffinity(0))


def hide_other_gpus(settings: Settings, environment: MutableMapping[str, str]) -> None:
    """Let this process and its children see no GPU but those of CERTSERVE_DEVICES.

    They count among those that are visible already. Raises ValueError where there are fewer.
    """
    visible = environment.get(VISIBLE)
    if not settings.devices or settings.device == "cpu" or visible == "":
        return
    names = None if visible is None else [name for name in visible.split(",") if name]
    if names is not None and max(settings.devices) >= len(names):
        raise ValueError(
            f"CERTSERVE_DEVICES names GPU {max(settings.devices)}, but {VISIBLE} has {len(names)}, "
            "counted from 0"
        )
    environment[VISIBLE] = ",".join(
        str(number) if names is None else names[number] for number in settings.devices
    )
