"""Bounds tried in float32, then again in float64 where float32's own rounding may be to blame.

Two kinds of bound are made of it, each from one plain function: margins at given epsilons
(``MarginsBound``), and a radius in closed form (``RadiusBound``). A bound of another kind calls
``margins_in_turn`` where it needs margins.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from workers.verification.clock import Clock, OutOfTime
from workers.verification.deviation.deep import (
    BackwardRadius,
    forward_errors,
    prove_on_deep,
    radii_on_deep,
)
from workers.verification.forward.margins import certified
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.norms.lanczos import FailureBudget
from workers.verification.problem import Arithmetic, Problem
from workers.verification.protocol import Bound, Budget, Margins, Verdict
from workers.verification.region import Region
from workers.verification.rounding import Rounding, exact_arithmetic

__all__ = [
    "ClosedForm",
    "MarginsBound",
    "RadiusBound",
    "RandomizedMargins",
    "margins_in_turn",
]

#: Beyond a bound's own share of the margin, a failed float32 pass is repeated in float64 where it
#: lacks less than so many rounding errors of a logit at the centre.
RETRY_ERRORS = 4.0
#: The same of what the pass itself has lost by rounding: boxes have lost by it as well.
RETRY_SLACKS = 2.0


class RandomizedMargins(Protocol):
    """The same, valid up to the failure probability that is counted in ``failure_budget``."""

    def __call__(
        self,
        failure_budget: FailureBudget,
        compiled: CompiledNetwork,
        region: Region,
        labels: Tensor,
        rounding: Rounding,
        dtype: torch.dtype,
        /,
        *,
        clock: Clock,
    ) -> Tensor:
        """As ``protocol.Margins``."""


class ClosedForm(Protocol):
    """The certified radius [batch] float64, rounded down, in one arithmetic."""

    def __call__(
        self,
        compiled: CompiledNetwork,
        x: Tensor,
        labels: Tensor,
        /,
        *,
        norm: str,
        rounding: Rounding,
        dtype: torch.dtype,
        clock: Clock,
    ) -> Tensor:
        """x [batch, *shape] and labels [batch] on the device of the work; zero or less: nothing is
        certified. Raises OutOfTime."""


@dataclass(frozen=True, kw_only=True)
class MarginsBound(Bound):
    """A bound made of lower bounds on the margins: all positive is a proof.

    margins: in one arithmetic; in_search: a cheaper form of it, instead of it where a radius is
    searched, in the first arithmetic alone, at the price of ``search_passes``; randomized: instead
    of it where the problem has a failure budget; metered: they take ``spent`` [batch] too, to which
    they add the forward passes that each sample has cost;
    retreats: they take ``reached`` [batch] where a radius is asked for, which they set to what they
    prove of smaller epsilons;
    tells_slack: they take ``lost`` [batch], which they set to what of the margins they have lost by
    rounding: that much lacks a failed float32 pass that is worth a retry, whatever ``retry_share``;
    so few are, that a search of the radius begins in float32 as well;
    rows_per_sample: rows that it carries for each sample: blocks of samples shrink by as much;
    retry_share, retry_most: a failed float32 pass is worth a retry where its bound lacks less than
    the first share of the margin at the centre, or ``RETRY_ERRORS`` but no more than the second;
    backward_budget: what fails on a deep network is tried once more on the REAL network, less what
    float32 may take there (``deviation.budget``);
    boxes_only: it carries rounding by boxes alone.
    """

    margins: Margins
    in_search: Margins | None = None
    search_passes: float | None = None
    randomized: RandomizedMargins | None = None
    retreats: bool = False
    tells_slack: bool = False
    rows_per_sample: int = 1
    retry_share: float = 0.5
    retry_most: float = math.inf
    backward_budget: bool = False
    boxes_only: bool = False

    def attempt(self, problem: Problem, region: Region, labels: Tensor, budget: Budget) -> Verdict:
        """As ``Bound.attempt``; it never falsifies, and costs what is expected."""
        margins = self.margins
        turns = problem.arithmetics()
        if budget.tightest and self.in_search is not None:
            margins, turns = self.in_search, turns[:1]
        elif budget.tightest and not self.tells_slack:
            turns = turns[-1:]
        if problem.failure_budget is not None and self.randomized is not None:
            margins = partial(self.randomized, problem.failure_budget)
        slack = torch.zeros(len(labels), dtype=torch.float64) if self.tells_slack else None
        verdict = margins_in_turn(
            margins,
            problem,
            region,
            labels,
            budget,
            turns,
            rows_per_sample=self.rows_per_sample,
            retry_share=self.retry_share,
            retry_most=self.retry_most,
            metered=self.metered,
            slack=slack,
            retreats=self.retreats and budget.radius,
        )
        if not self.metered:
            verdict.spent.fill_(self.price(tightest=budget.tightest))
        if self.backward_budget:
            prove_on_deep(
                self.margins,
                problem,
                region,
                labels,
                budget,
                verdict,
                slack,
                boxes_only=self.boxes_only,
            )
        return verdict

    def price(self, *, tightest: bool) -> float:
        """As ``Bound.price``."""
        cheaper = tightest and self.search_passes is not None
        return self.search_passes if cheaper else self.max_passes  # type: ignore[return-value]


def margins_in_turn(
    margins: Margins,
    problem: Problem,
    region: Region,
    labels: Tensor,
    budget: Budget,
    turns: list[Arithmetic],
    *,
    rows_per_sample: int = 1,
    retry_share: float = 0.5,
    retry_most: float = math.inf,
    metered: bool = False,
    slack: Tensor | None = None,
    retreats: bool = False,
) -> Verdict:
    """What ``margins`` prove, in one arithmetic after the other.

    turns: the arithmetics to try, of those of the problem; other arguments as of ``Bound.attempt``
    and ``MarginsBound``. The next arithmetic tries what failed and may have failed by rounding, or
    broke down altogether. ``spent`` is left at 0 unless the margins are metered. retreats: the
    margins are asked for smaller epsilons too. slack [batch]: of
    margins that tell it, to be filled in place.
    """
    x, clock = region.x, budget.clock
    smaller = torch.zeros(x.shape[0], dtype=torch.float64)
    verdict = replace(Verdict.undecided(x.shape[0]), reached=smaller)
    proved, lowest = verdict.proved, verdict.least_margin
    hopeful = torch.ones(x.shape[0], dtype=torch.bool)
    everything = torch.arange(x.shape[0])
    with exact_arithmetic(), contextlib.suppress(OutOfTime):
        for number, (rounding, dtype) in enumerate(turns, start=1):
            still = (~proved & hopeful).nonzero().flatten()
            for rows in problem.blocks(
                len(x), still, dtype, rows_per_sample=rows_per_sample, clock=clock
            ):
                asked = labels[rows].to(problem.device)
                spent = torch.zeros(len(asked), dtype=torch.float64, device=problem.device)
                lost, reached = torch.zeros_like(spent), torch.zeros_like(spent)
                told = {"spent": spent} if metered else {}
                told |= {"reached": reached} if retreats else {}
                told |= {} if slack is None else {"lost": lost}
                found = margins(
                    problem.compiled,
                    region.part(rows, problem.device),
                    asked,
                    rounding,
                    dtype,
                    clock=clock,
                    **told,
                )
                if slack is not None:
                    slack[rows] = lost.cpu()
                verdict.spent[rows] += spent.cpu()
                smaller[rows] = torch.maximum(smaller[rows], reached.cpu())
                proved[rows] = certified(found).cpu()
                lowest[rows] = torch.maximum(lowest[rows], found.amin(1).cpu())
                budget.report(everything[rows], proved[rows])
            if number < len(turns):
                failed = (~proved).nonzero().flatten()
                if slack is not None:
                    near = RETRY_SLACKS * slack[failed]
                else:
                    near = _lost_by_float32(problem, region, failed, budget, retry_share)
                    near = torch.fmin(near, retry_most * budget.margin[failed])
                hopeful[failed] = (lowest[failed] > -near) | torch.isneginf(lowest[failed])
    return verdict


@dataclass(frozen=True, kw_only=True)
class RadiusBound(Bound):
    """A bound that is a radius in closed form: one try answers every epsilon.

    radius: in one arithmetic; retry_share: as of ``MarginsBound``;
    backward_radius: the same on deep networks, by the backward budget, for what is left.
    """

    radius: ClosedForm
    backward_radius: BackwardRadius | None = None
    retry_share: float = 0.5

    def attempt(self, problem: Problem, region: Region, labels: Tensor, budget: Budget) -> Verdict:
        """As ``Bound.attempt``: whether the radius reaches each sample's epsilon. No margins."""
        radii = self.radii(problem, region, labels, region.epsilon[:, None], budget)
        verdict = Verdict.undecided(len(radii))
        verdict.proved.copy_(radii >= region.epsilon)
        verdict.spent.fill_(self.expected_passes)
        budget.report(torch.arange(len(radii)), verdict.proved)
        return verdict

    def radii(
        self, problem: Problem, region: Region, labels: Tensor, asked: Tensor, budget: Budget
    ) -> Tensor:
        """Certified radius [batch] float64 in pixel units around ``region.x``, rounded down.

        asked [epsilons] or [batch, epsilons]: the next arithmetic is tried only where it may decide
        one of them (``budget.tightest``: the tightest alone). -inf where there was no time.
        """
        x, clock = region.x, budget.clock
        best = torch.full((x.shape[0],), -math.inf, dtype=torch.float64)
        hopeful = torch.ones(x.shape[0], dtype=torch.bool)
        with exact_arithmetic(), contextlib.suppress(OutOfTime):
            turns = problem.arithmetics()[-1 if budget.tightest else 0 :]
            for number, (rounding, dtype) in enumerate(turns, start=1):
                for rows in problem.blocks(len(x), hopeful.nonzero().flatten(), dtype, clock=clock):
                    found = self.radius(
                        problem.compiled,
                        x[rows].to(problem.device),
                        labels[rows].to(problem.device),
                        norm=region.norm,
                        rounding=rounding,
                        dtype=dtype,
                        clock=clock,
                    )
                    best[rows] = torch.maximum(best[rows], found.cpu())
                if number == len(turns):
                    break
                failed = (best[:, None] < asked).any(1).nonzero().flatten()
                share = torch.zeros_like(best)
                lost = _lost_by_float32(problem, region, failed, budget, self.retry_share)
                share[failed] = lost / budget.margin[failed]
                near = (best[:, None] < asked) & (asked <= best[:, None] * (1.0 + share[:, None]))
                hopeful = near.any(1) | (best <= 0)
            if self.backward_radius is not None:
                radii_on_deep(self.backward_radius, problem, region, labels, asked, budget, best)
        return best


def _lost_by_float32(
    problem: Problem, region: Region, rows: Tensor, budget: Budget, retry_share: float
) -> Tensor:
    """What of the margin at the centre a bound may lose by computing in float32, [rows] float64."""
    lost = forward_errors(problem, region, rows, budget.clock, torch.float32)
    return torch.maximum(retry_share * budget.margin[rows], RETRY_ERRORS * lost)
