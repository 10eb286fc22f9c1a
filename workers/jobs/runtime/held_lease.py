"""What a horse holds, written where its parent can read it after the horse was killed.

A file in memory that the parent made and the horse inherited: nothing to clean up, and no
second way into Redis. So a killed horse's item is free again at once, with the reason, rather
than when its lease runs out.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict

from service.contract.ledger.leases import Lease

__all__ = ["create", "read", "write"]

#: Names the descriptor in the horse's environment.
VARIABLE = "CERTSERVE_LEASE_NOTE"


def create() -> int:
    """The parent's descriptor of an empty note; the children it starts inherit it."""
    return os.memfd_create("certserve-lease", 0)


def write(lease: Lease | None) -> None:
    """Say what this horse holds now; without a parent that listens nothing happens."""
    descriptor = os.environ.get(VARIABLE)
    if descriptor is None:
        return
    text = b"" if lease is None else json.dumps(asdict(lease)).encode()
    os.ftruncate(int(descriptor), 0)
    os.pwrite(int(descriptor), text, 0)


def read(descriptor: int) -> Lease | None:
    """What the horse held when it ended."""
    try:
        return Lease(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None
