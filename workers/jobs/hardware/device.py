"""Which device a setting means."""

from __future__ import annotations

import os

import torch

__all__ = ["DeviceMissing", "device_name", "device_of"]


class DeviceMissing(RuntimeError):
    """The settings name a device that is not there."""


def device_of(wanted: str) -> torch.device:
    """The device of a setting, with its index: ``auto`` is a GPU where there is one.

    Raises DeviceMissing.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceMissing(
            "CERTSERVE_DEVICE is cuda, but torch sees no GPU: look at nvidia-smi, at "
            "CUDA_VISIBLE_DEVICES and at whether this torch is a CUDA build "
            f"({torch.__version__}); or set CERTSERVE_DEVICE=cpu"
        )
    # Read when cuBLAS is first used: repeatable sums, and float64 that is IEEE's.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ["CUBLAS_EMULATE_DOUBLE_PRECISION"] = "0"
    return torch.device("cuda", torch.cuda.current_device())


def device_name(device: torch.device) -> str:
    """The device's name as a report shows it."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type
