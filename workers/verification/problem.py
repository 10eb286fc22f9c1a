"""The input of every bound: the compiled network, and the arithmetics that it may be computed in.

One problem serves all samples of a shard; region, labels and budget come with each attempt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.verification.block_sizes import BLOCK_BYTES
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.norms.lanczos import FailureBudget
from workers.verification.rounding import Rounding

__all__ = ["Arithmetic", "Problem"]

#: What of rounding is accounted for, and the dtype that a bound computes in.
Arithmetic = tuple[Rounding, torch.dtype]


@dataclass(frozen=True)
class Problem:
    """A compiled network, to be certified on ``device``, soundly or as an estimate.

    sound: rounding of the deployed float32 network and of the bound itself is accounted for;
    only: one arithmetic instead of all that are tried in turn;
    failure_budget: random starts are allowed and counted there (None: all is deterministic).
    """

    compiled: CompiledNetwork
    sound: bool
    device: torch.device
    only: torch.dtype | None = None
    failure_budget: FailureBudget | None = None

    def arithmetics(self) -> list[Arithmetic]:
        """Arithmetics to try in turn: what the first leaves open, the next tries again.

        On a CPU float32 with its own rounding folded in is cheap and nearly as tight; what it
        proves is proved. On CUDA float64 alone: float32 kernels may leave the error model.
        """
        if not self.sound:
            return [(Rounding.ignored(), torch.float32)]
        kinds = [torch.float64] if self.only is None else [self.only]
        if self.only is None and self.device.type == "cpu":
            kinds = [torch.float32, torch.float64]
        # A float32 copy of weights beyond its range proves nothing of the network.
        safe = self.compiled.float32_safe
        kinds = [kind for kind in kinds if safe or kind == torch.float64]
        return [(Rounding.sound(kind), kind) for kind in kinds]

    def blocks(
        self,
        batch: int,
        rows: Tensor,
        dtype: torch.dtype,
        *,
        rows_per_sample: int = 1,
        clock: Clock = UNLIMITED,
    ) -> Iterator[Tensor | slice]:
        """``rows`` (sorted positions in a batch of this size) in blocks that fit into a cache.

        dtype: of the activations; rows_per_sample: how many of them a bound carries for each
        sample. A slice where the rows are the whole batch. Looks at the clock before each block:
        raises OutOfTime.
        """
        shapes = [self.compiled.input_shape, *(step.shape for step in self.compiled.steps)]
        largest = max(self.compiled.head.classes, *(math.prod(shape) for shape in shapes))
        room = BLOCK_BYTES[self.device.type] // rows_per_sample
        size = max(1, room // (largest * dtype.itemsize))
        whole = rows.numel() == batch
        for start in range(0, rows.numel(), size):
            clock.check()
            yield slice(start, start + size) if whole else rows[start : start + size]
