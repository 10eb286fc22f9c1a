"""Lets a process keep the memory that it frees. A training step asks for the same tensors again.

The C library gives large blocks back at once, and the kernel clears every page of the next one: a
tenth of a step of ``shiftnet`` on a processor.
"""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

#: Parameters of glibc's mallopt(3), and their values: no block is mapped by itself, nothing is
#: given back (the largest int), and the heap grows by 64 MiB at a time.
_M_MMAP_MAX, _M_TRIM_THRESHOLD, _M_TOP_PAD = -4, -1, -2
_KEPT = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20))


def keep_freed_memory() -> bool:
    """Ask the C library to keep what is freed. Returns whether it knows how: glibc alone does."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in _KEPT)
