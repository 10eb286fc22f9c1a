"""alpha-CROWN over intermediate layers too (Xu et al., ICLR 2021): every box by optimised slopes.

Layer by layer, both ends of each neuron that CROWN leaves unstable are objectives of their own,
with slopes of their own, before the next layer uses the box. That leaves no box wider than one
set of slopes shared by all margins would, and needs no gradient through boxes.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from workers.verification.backward.backward_pass import BackwardPass
from workers.verification.bounds.alpha_crown import alpha_pass, optimized_bound
from workers.verification.bounds.crown import final_forms, refine_boxes, tell_slack
from workers.verification.clock import UNLIMITED, Clock, OutOfTime
from workers.verification.forward.margins import certified
from workers.verification.forward.propagation import Enclosure
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding

__all__ = ["BOX_ITERATIONS", "alpha_crown_intermediate_margins", "tightened"]

#: Gradient steps per end of a box.
BOX_ITERATIONS = 5


def alpha_crown_intermediate_margins(
    compiled: CompiledNetwork,
    region: Region,
    labels: Tensor,
    rounding: Rounding,
    dtype: torch.dtype,
    *,
    lost: Tensor | None = None,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Lower bounds [batch, classes] on f_y - f_j over the region: alpha-CROWN's, then, where they
    do not certify a sample, the better of them and those with optimised boxes.

    Nowhere below alpha-CROWN's, sound in the same sense. Raises OutOfTime before CROWN's own
    margins are there.
    """
    backward, bounds = alpha_pass(compiled, region, labels, rounding, dtype, clock=clock)
    tell_slack(backward, lost)
    # Rows of -inf: what the head itself ruled out (overflow) stays so.
    rows = (~certified(bounds) & ~torch.isneginf(bounds).any(1)).nonzero().flatten()
    if rows.numel():
        # alpha-CROWN's own margins stand, however far these get.
        with contextlib.suppress(OutOfTime):
            tighter = tightened(backward, rows)
            bounds[rows] = final_forms(tighter, labels[rows], bounds[rows], optimized_bound)
    return bounds


def tightened(
    backward: BackwardPass, rows: Tensor, iterations: int = BOX_ITERATIONS
) -> BackwardPass:
    """The pass for these samples alone, with their boxes optimised layer by layer; the given one's
    stay as they are."""
    part = _samples_of(backward, rows)
    for index, step in enumerate(part.compiled.steps):
        if not isinstance(step.op, Affine):
            solve = partial(optimized_bound, iterations=iterations)
            refine_boxes(part, index, solve, again=True)
    return part


def _samples_of(backward: BackwardPass, rows: Tensor) -> BackwardPass:
    region = backward.region

    def chosen(values: Tensor | None) -> Tensor:
        assert values is not None
        return values[rows]

    values: list[Enclosure | None] = []
    for state in backward.values:
        assert state is not None
        values.append(
            replace(
                state,
                centre=chosen(state.centre),
                radius=chosen(state.radius),
                lower=chosen(state.lower),
                upper=chosen(state.upper),
                valid=chosen(state.valid),
            )
        )
    return backward.over(region.part(rows, region.x.device), values)
