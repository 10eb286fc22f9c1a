"""Box constraint propagation (BCP, Lee et al., NeurIPS 2020): ball and box carried together.

Sound where the paper's code is not: operator norms are upper bounds, the last layer is solved by
its exact dual in float64, and rounding is part of ball and box. Beyond the paper, the box starts
inside [0, 1] and every box tightens its ball (docs/soundness.md, "Ball and box").
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock, OutOfTime
from workers.verification.forward.margins import certified, margin_lower_bounds
from workers.verification.forward.propagation import propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding

__all__ = ["bcp_margins"]

#: Samples on which it is tried whether the ball alone decides anything here.
PROBE = 3


def bcp_margins(
    compiled: CompiledNetwork,
    region: Region,
    labels: Tensor,
    rounding: Rounding,
    dtype: torch.dtype,
    *,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Lower bounds [batch, classes] on f_y - f_j over the region; the label's column is inf.

    The ball alone costs one forward pass and is never tighter. Where it decides some of a few
    samples it goes first, and boxes are carried only for what it leaves open: cheaper, no other.
    Sound for every row, in the deployed network too (``rounding``). Raises OutOfTime before the
    ball has answered; what it decided stands.
    """

    def margins(rows: Tensor, *, box: bool) -> Tensor:
        part = region
        if rows.numel() < len(labels):
            part = region.part(rows, region.x.device)
        state = propagate(compiled, part, rounding=rounding, dtype=dtype, box=box, clock=clock)
        return margin_lower_bounds(compiled.head, state, labels[rows], rounding, clock=clock)

    everything = torch.arange(len(labels), device=labels.device)
    if not bool(certified(margins(everything[:PROBE], box=False)).any()):
        return margins(everything, box=True)
    bounds = margins(everything, box=False)
    rows = (~certified(bounds)).nonzero().flatten()
    if rows.numel():
        # What the ball decided stands.
        with contextlib.suppress(OutOfTime):
            bounds[rows] = margins(rows, box=True)
    return bounds
