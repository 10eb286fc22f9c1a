"""How much is worked on at once: small enough for a CPU's cache, large enough to fill a GPU.

Speed and memory alone: no result depends on these sizes (``cascade/test_invariance.py``). A bound
on one sample may hold thousands of rows, so samples, rows and frequencies are taken in blocks.
``benchmarks/verification/layouts.py`` measures what small blocks bring on a CPU. On a shared
two-core x86 machine, one thread, in speeds with blocks of 256 MB: 1.3 for interval bounds and BCP,
1.1 for CROWN. How long one piece of work may take before the clock is looked at is another matter:
``clock.rows_per_piece``.
"""

from __future__ import annotations

__all__ = ["BLOCK_BYTES", "GRADIENT_TENSORS", "GRAM_ENTRIES", "ROW_BYTES", "VECTOR_BYTES"]

#: Bytes per activation tensor of a block of samples, by type of device.
BLOCK_BYTES = {"cpu": 2**21, "cuda": 2**28}

#: Bytes of one tensor of coefficients of a backward pass.
ROW_BYTES = {"cpu": 2**22, "cuda": 2**30}

#: A bound that follows gradients holds about so many times as many tensors of coefficients; on a
#: CPU blocks are small anyway.
GRADIENT_TENSORS = {"cpu": 1, "cuda": 16}

#: Entries of the matrices of a circulant norm that are looked at together: 32 MB each time they are
#: written.
GRAM_ENTRIES = 2**21

#: Bytes of Lanczos vectors held at once.
VECTOR_BYTES = 2**28
