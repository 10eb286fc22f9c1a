"""Connects the ranks of a run: a file for the rendezvous, the loopback interface for all else.

NCCL on GPUs, Gloo on processors. No port is fixed, and nothing listens outside this host.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from workers.training.distributed.ranks import Ranks, RanksLost

__all__ = ["START_S", "joined"]

#: Seconds until all ranks have imported what they need and are there.
START_S = 300.0
#: Read by both libraries when they connect.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


@contextlib.contextmanager
def joined(
    rank: int, size: int, rendezvous: Path, device: torch.device, *, limit_s: float
) -> Iterator[Ranks]:
    """The ranks of a run, connected; ``rendezvous`` is a file that no other run has used.

    ``limit_s``: seconds that a rank waits in a step for the others. Raises RanksLost.
    """
    os.environ.update(LOOPBACK)
    try:
        store = dist.FileStore(str(rendezvous), size)  # type: ignore[attr-defined]
        # The time limit of the first message begins when all are there.
        store.set(f"here/{rank}", "")
        store.wait([f"here/{other}" for other in range(size)], timedelta(seconds=START_S))
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=limit_s),
            device_id=device if device.type == "cuda" else None,
        )
    except RuntimeError as error:
        raise RanksLost(f"the ranks were not all there within {START_S:.0f} s") from error
    yield Ranks(rank, size)
    # Not after an error: a library that still waits for a lost rank would wait here as well.
    dist.destroy_process_group()
