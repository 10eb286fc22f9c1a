"""alpha-CROWN (Xu et al., ICLR 2021): the lower slopes of unstable neurons optimised per row.

Starts where CROWN ends, on the classes that are still open. Every iterate is a sound bound of its
own, evaluated like CROWN's; the best one met counts, so nothing depends on convergence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.verification.backward.backward_pass import BackwardPass
from workers.verification.backward.linear_form import LinearForm
from workers.verification.bounds.crown import final_forms, refined_pass, tell_slack
from workers.verification.clock import UNLIMITED, Clock, OutOfTime
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.layers.rules import LinearRelaxation
from workers.verification.region import Region
from workers.verification.rounding import Rounding

__all__ = ["ITERATIONS", "Slopes", "alpha_crown_margins", "alpha_pass", "optimized_bound"]

#: Gradient steps per row; the reference verifier's usual number.
ITERATIONS = 20
LEARNING_RATE, DECAY = 0.2, 0.97


def alpha_crown_margins(
    compiled: CompiledNetwork,
    region: Region,
    labels: Tensor,
    rounding: Rounding,
    dtype: torch.dtype,
    *,
    lost: Tensor | None = None,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Lower bounds [batch, classes] on f_y - f_j over the region, slopes optimised.

    Nowhere below CROWN's, sound in the same sense; when the time is over the best iterate met
    counts. Raises OutOfTime before CROWN's own margins are there.
    """
    backward, bounds = alpha_pass(compiled, region, labels, rounding, dtype, clock=clock)
    tell_slack(backward, lost)
    return bounds


def alpha_pass(
    compiled: CompiledNetwork,
    region: Region,
    labels: Tensor,
    rounding: Rounding,
    dtype: torch.dtype,
    *,
    clock: Clock = UNLIMITED,
) -> tuple[BackwardPass, Tensor]:
    """The pass with CROWN's boxes; margins [batch, classes] with the last slopes optimised."""
    backward, bounds = refined_pass(compiled, region, labels, rounding, dtype, "crown", clock=clock)
    bounds = final_forms(backward, labels, bounds)
    return backward, final_forms(backward, labels, bounds, solve=optimized_bound)


class Slopes:
    """Lower slopes per row of every step with unstable neurons, in the form that rows have there.

    They start as CROWN's, when the first backward pass meets the step. Stable neurons keep theirs:
    whether they move must not depend on what else is in the batch.
    """

    def __init__(self) -> None:
        self.tensors: dict[int, Tensor] = {}
        #: Which of them may move, in the same form.
        self.free: dict[int, Tensor] = {}
        self._min_slopes: dict[int, float] = {}

    def __call__(self, index: int, rows: LinearForm, relaxation: LinearRelaxation) -> Tensor:
        if index in self.tensors:
            return self.tensors[index]
        slopes = rows.pick(relaxation.lower_slope)
        if not bool(relaxation.free.any()):
            return slopes
        slopes = slopes.expand(rows.coefficients.shape).clone().requires_grad_(True)
        self.tensors[index] = slopes
        self.free[index] = rows.pick(relaxation.free).expand(rows.coefficients.shape)
        self._min_slopes[index] = relaxation.min_slope
        return slopes

    def hold_stable(self) -> None:
        """Take the gradient away from stable neurons."""
        for index, free in self.free.items():
            gradient = self.tensors[index].grad
            if gradient is not None:
                gradient.mul_(free)

    def project(self) -> None:
        """Back into [least slope, 1]."""
        with torch.no_grad():
            for index, least in self._min_slopes.items():
                self.tensors[index].clamp_(least, 1.0)


def optimized_bound(
    backward: BackwardPass,
    value: int,
    rows: LinearForm,
    needed: Tensor,
    *,
    iterations: int = ITERATIONS,
) -> Tensor:
    """Best lower bounds [rows] met while ascending in the slopes; a row above ``needed`` stops.

    Projected Adam on all rows at once. A row that stopped keeps what it had then: its bound does
    not depend on how long the others go on. Once the time is over, what was met so far counts;
    raises OutOfTime where that is nothing.
    """
    slopes = Slopes()
    best = torch.full_like(needed, -math.inf)
    pulls = torch.ones_like(needed, dtype=torch.bool)
    optimizer: torch.optim.Optimizer | None = None
    for iteration in range(iterations + 1):
        with torch.enable_grad():
            try:
                bound = backward.lower_bound(value, rows, slopes=slopes)
            except OutOfTime:
                if iteration == 0:
                    raise
                break
            found = bound.detach()
            best = torch.where(pulls, torch.fmax(best, found), best)
            pulls = pulls & (best <= needed) & torch.isfinite(found)
            if iteration == iterations or not slopes.tensors or not bool(pulls.any()):
                break
            if optimizer is None:
                optimizer = torch.optim.Adam(list(slopes.tensors.values()), lr=LEARNING_RATE)
            optimizer.zero_grad(set_to_none=True)
            (-bound[pulls].sum()).backward()
        slopes.hold_stable()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= DECAY
        slopes.project()
    return best
