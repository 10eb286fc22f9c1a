"""Interval bounds (IBP, Gowal et al. 2018): boxes alone, for l2 and linf balls."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.forward.margins import margin_lower_bounds
from workers.verification.forward.propagation import propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding

__all__ = ["interval_margins"]


def interval_margins(
    compiled: CompiledNetwork,
    region: Region,
    labels: Tensor,
    rounding: Rounding,
    dtype: torch.dtype,
    *,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Lower bounds [batch, classes] on f_y - f_j over the region's box; label's column inf.

    Sound for every row, in the deployed network too (``rounding``). Raises OutOfTime.
    """
    state = propagate(compiled, region, rounding=rounding, dtype=dtype, ball=False, clock=clock)
    return margin_lower_bounds(compiled.head, state, labels, rounding, clock=clock)
