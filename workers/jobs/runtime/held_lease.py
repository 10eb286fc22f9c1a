"""The lease that a work horse holds, written where the worker can read it after a kill.

It is a file in memory that the worker made and the work horse inherited, so that nothing has to be
cleaned up. With it the item of a killed work horse is free again at once, with the reason, and not
only when its lease runs out.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict

from service.contract.ledger.leases import Lease

__all__ = ["create", "read", "write"]

#: Variable of the work horse's environment that names the descriptor.
VARIABLE = "CERTSERVE_LEASE_NOTE"


def create() -> int:
    """The worker's descriptor of an empty file in memory; its children inherit it."""
    return os.memfd_create("certserve-lease", 0)


def write(lease: Lease | None) -> None:
    """Write the lease that this work horse holds now; does nothing without the descriptor."""
    descriptor = os.environ.get(VARIABLE)
    if descriptor is None:
        return
    text = b"" if lease is None else json.dumps(asdict(lease)).encode()
    os.ftruncate(int(descriptor), 0)
    os.pwrite(int(descriptor), text, 0)


def read(descriptor: int) -> Lease | None:
    """The lease that the work horse held when it ended."""
    try:
        return Lease(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None
