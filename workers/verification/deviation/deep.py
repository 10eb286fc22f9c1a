"""Bounds on deep networks: what fails with the deployed rounding carried forward is tried once more
with the rounding carried backward.

The products of norms, or of boxes, by which a forward pass carries rounding from layer to layer are
on ten layers a multiple of the margin. So the bound is taken on the REAL network, and what float32
may take there (``deviation.budget``) is subtracted at the end.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

import torch
from torch import Tensor

from workers.verification.clock import Clock, OutOfTime
from workers.verification.deviation.budget import margin_budget
from workers.verification.forward.margins import certified, logit_enclosure
from workers.verification.forward.propagation import has_forward_rule, propagate
from workers.verification.graph.affine_maps import Convolution, Dense
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.numerics import up
from workers.verification.problem import Problem
from workers.verification.protocol import Budget, Margins, Verdict
from workers.verification.region import Region
from workers.verification.rounding import Rounding, exact_arithmetic

__all__ = ["BackwardRadius", "forward_errors", "prove_on_deep", "radii_on_deep"]

#: Convolutions and dense layers before the head, at least, and what they round, carried forward, as
#: a share of the margin: below that there is nothing to gain.
DEEP_LAYERS, DEEP_SHARE = 4, 0.02
#: Worth it where a bound lacks less than so many times what rounding, carried forward, may change.
WITHIN = 4.0
#: A radius is worth a budget where it may grow by this share (what rounding takes beside that
#: stays), and, where no epsilon asked for is at stake, to this share of the least of them.
GAIN, RELEVANT = 0.1, 0.5
#: What a budget costs, in plain forward passes.
BUDGET_PASSES = 100.0


class BackwardRadius(Protocol):
    """A radius in closed form with the deployed rounding carried backward."""

    def __call__(
        self,
        compiled: CompiledNetwork,
        x: Tensor,
        labels: Tensor,
        /,
        *,
        norm: str,
        least: Tensor,
        clock: Clock,
    ) -> Tensor:
        """least [batch]: a radius below this is of no use. Raises OutOfTime."""


def prove_on_deep(
    margins: Margins,
    problem: Problem,
    region: Region,
    labels: Tensor,
    budget: Budget,
    verdict: Verdict,
    near: Tensor | None = None,
    *,
    boxes_only: bool = False,
) -> None:
    """Try once more what ``verdict`` left undecided on a deep network, and change it in place.

    Arguments as of ``Bound.attempt``; near [batch]: where a bound lacks more than this, rounding is
    not to blame (None: as ``WITHIN`` says). boxes_only: the bound carries rounding by boxes alone,
    by which it may lose any number of times what ball and box together do: then it is tried
    everywhere. Where the time is over, what was proved so far stands.
    """
    dtype, clock = torch.float64, budget.clock
    everything = torch.arange(len(region.x))
    with exact_arithmetic(), contextlib.suppress(OutOfTime):
        failed, errors = _deep(problem, region, ~verdict.proved, budget, boxes_only=boxes_only)
        reach = WITHIN * errors if near is None else near[failed]
        least = verdict.least_margin[failed]
        # -inf: some class was given up, or nothing was found.
        failed = failed[(least > -reach) | torch.isneginf(least)]
        for block in problem.blocks(len(region.x), failed, dtype, clock=clock):
            rows = everything[block]
            part, asked = region.part(rows, problem.device), labels[rows].to(problem.device)
            # As much as it has cost before.
            verdict.spent[rows] += verdict.spent[rows]
            real = margins(problem.compiled, part, asked, Rounding.real(dtype), dtype, clock=clock)
            positive = certified(real)
            if not bool(positive.any()):
                continue
            rows, real = rows[positive.cpu()], real[positive]
            part, asked = region.part(rows, problem.device), asked[positive]
            lost = margin_budget(problem.compiled, part, asked, real=real, clock=clock)
            found = real - lost - (real.abs() + lost) * (up(1) - 1.0)
            # The label's own column.
            found = torch.where(torch.isposinf(real), real, found)
            verdict.proved[rows] = certified(found).cpu()
            least = found.amin(1).cpu()
            verdict.least_margin[rows] = torch.maximum(verdict.least_margin[rows], least)
            verdict.spent[rows] += BUDGET_PASSES
            budget.report(rows, verdict.proved[rows])


def radii_on_deep(
    radius: BackwardRadius,
    problem: Problem,
    region: Region,
    labels: Tensor,
    asked: Tensor,
    budget: Budget,
    best: Tensor,
) -> None:
    """Raise radii ``best`` [batch] in place on a deep network, where that may decide one of the
    ``asked`` epsilons (``budget.tightest``: wherever it may). Raises OutOfTime."""
    open_epsilons = torch.where(best[:, None] < asked, asked, torch.inf).amin(1)
    worth = RELEVANT * asked.amin(-1).expand(len(best)) if budget.tightest else open_epsilons
    failed, _ = _deep(problem, region, torch.isfinite(open_epsilons), budget)
    everything = torch.arange(len(best))
    for block in problem.blocks(len(best), failed, torch.float64, clock=budget.clock):
        rows = everything[block]
        least = torch.maximum((1.0 + GAIN) * best[rows].clamp_min(0.0), worth[rows])
        found = radius(
            problem.compiled,
            region.x[rows].to(problem.device),
            labels[rows].to(problem.device),
            norm=region.norm,
            least=least.to(problem.device),
            clock=budget.clock,
        )
        best[rows] = torch.maximum(best[rows], found.cpu())


def _deep(
    problem: Problem, region: Region, failed: Tensor, budget: Budget, *, boxes_only: bool = False
) -> tuple[Tensor, Tensor]:
    """(rows of ``failed`` [batch] bool where a deep network's rounding counts, its size there:
    infinite, and everywhere, for ``boxes_only``)."""
    maps = [step for step in problem.compiled.steps if isinstance(step.op, Dense | Convolution)]
    rows = (failed & (budget.margin > 0)).nonzero().flatten()
    if not problem.sound or problem.only == torch.float32 or len(maps) < DEEP_LAYERS:
        rows = rows[:0]
    errors = torch.full((len(rows),), torch.inf if boxes_only else 0.0, dtype=torch.float64)
    if rows.numel() and not boxes_only:
        errors = forward_errors(problem, region, rows, budget.clock, torch.float64)
    large = errors >= DEEP_SHARE * budget.margin[rows]
    return rows[large], errors[large]


def forward_errors(
    problem: Problem, region: Region, rows: Tensor, clock: Clock, dtype: torch.dtype
) -> Tensor:
    """What rounding may change in a logit at the centre, carried forward, [rows] float64.

    dtype: of the verifier's own arithmetic. Infinite where nothing is known. Raises OutOfTime.
    """
    lost = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    if not all(has_forward_rule(step.op) for step in problem.compiled.steps):
        return lost
    rounding = Rounding.sound(dtype)
    centre = Region(region.x[rows], torch.zeros_like(lost), region.norm, region.clip)
    for part in problem.blocks(len(rows), torch.arange(len(rows)), dtype, clock=clock):
        at_x = centre.part(part, problem.device)
        state = propagate(problem.compiled, at_x, rounding=rounding, dtype=dtype, clock=clock)
        _, error = logit_enclosure(problem.compiled.head, state, rounding)
        # Negative: nothing is known, float32 may overflow.
        lost[part] = torch.where(error < 0, torch.inf, error).amax(1).cpu()
    return lost
