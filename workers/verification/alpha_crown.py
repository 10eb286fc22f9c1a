"""alpha-CROWN (Xu et al., ICLR 2021): the lower slopes of unstable neurons optimised per row.

Starts where CROWN ends, on the classes that are still open. Every iterate is a sound bound of its
own, evaluated like CROWN's; the best one met counts, so nothing depends on convergence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.verification.backward import BackwardPass
from workers.verification.crown import final_rows, refined_pass
from workers.verification.program import Program
from workers.verification.region import Region
from workers.verification.relaxation import RELAXATIONS
from workers.verification.rounding import Rounding
from workers.verification.rows import Rows

__all__ = ["ITERATIONS", "alpha_crown_margins", "optimized_bound"]

#: Gradient steps per row; the reference verifier's usual number.
ITERATIONS = 20
LEARNING_RATE, DECAY = 0.2, 0.97


def alpha_crown_margins(
    program: Program, region: Region, labels: Tensor, rounding: Rounding, dtype: torch.dtype
) -> Tensor:
    """Lower bounds [batch, classes] on f_y - f_j over the region, slopes optimised."""
    backward, bounds = refined_pass(program, region, labels, rounding, dtype, "crown")
    bounds = final_rows(backward, labels, bounds)
    return final_rows(backward, labels, bounds, solve=optimized_bound)


def optimized_bound(backward: BackwardPass, value: int, rows: Rows, needed: Tensor) -> Tensor:
    """Best lower bounds [rows] met while ascending in the slopes; a row above ``needed`` stops.

    Projected Adam on all rows at once; slopes stay within [least slope, 1].
    """
    slopes = _initial_slopes(backward, value, rows)
    best = torch.full_like(needed, -math.inf)
    if not slopes:
        return backward.lower_bound(value, rows)
    optimizer = torch.optim.Adam(list(slopes.values()), lr=LEARNING_RATE)
    for iteration in range(ITERATIONS + 1):
        with torch.enable_grad():
            bound = backward.lower_bound(value, rows, alpha=slopes)
            best = torch.fmax(best, bound.detach())
            # Rows that are proved already no longer pull.
            still = (best <= needed) & torch.isfinite(bound.detach())
            if iteration == ITERATIONS or not bool(still.any()):
                break
            optimizer.zero_grad(set_to_none=True)
            (-bound[still].sum()).backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= DECAY
        with torch.no_grad():
            for index, tensor in slopes.items():
                tensor.clamp_(backward.envelope(index).least_slope, 1.0)
    return best


def _initial_slopes(backward: BackwardPass, value: int, rows: Rows) -> dict[int, Tensor]:
    """One slope per row and neuron of every relaxed step before ``value``: CROWN's choice."""
    result: dict[int, Tensor] = {}
    count = rows.coefficients.shape[0]
    for index, step in enumerate(backward.program.steps[:value]):
        if type(step.op) not in RELAXATIONS:
            continue
        envelope = backward.envelope(index)
        if not bool(envelope.free.any()):
            continue
        slope = envelope.lower_slope
        slope = slope.expand(count, *step.shape) if rows.sample is None else slope[rows.sample]
        result[index] = slope.clone().requires_grad_(True)
    return result
