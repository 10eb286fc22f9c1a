"""Checks a worker's GPU before the worker takes a job that it could not do.

A long-lived process must not touch CUDA or import torch, so a child does both.
"""

from __future__ import annotations

import subprocess
import sys

from service.contract.processes import python_module

__all__ = ["DEVICE_LOST", "out_of_order"]

#: Exit status of a work horse whose GPU failed: CUDA is unusable in that process afterwards.
DEVICE_LOST = 75

#: Seconds after which a driver that has not answered counts as broken.
CHECK_S = 120.0


def out_of_order(wanted: str) -> str | None:
    """Why the device of a setting cannot be worked with; None where it can, or none was named."""
    if wanted != "cuda":
        return None
    try:
        child = subprocess.run(
            [*python_module("workers.jobs.hardware.device_check"), wanted],
            capture_output=True,
            text=True,
            timeout=CHECK_S,
        )
    except subprocess.TimeoutExpired:
        return f"the device {wanted} did not answer within {CHECK_S:.0f} s"
    lines = child.stderr.strip().splitlines() or [f"its check ended with {child.returncode}"]
    return None if child.returncode == 0 else lines[-1]


def main() -> int:
    """Multiply on the device; what is wrong goes to standard error, as its last line."""
    import torch

    from workers.jobs.hardware.device import device_of

    try:
        ones = torch.ones(64, 64, dtype=torch.float64, device=device_of(sys.argv[1]))
        if float((ones @ ones).sum()) != 64.0**3:
            raise RuntimeError(f"{ones.device} multiplies wrongly")
    except RuntimeError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
