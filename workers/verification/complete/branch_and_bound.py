"""Branch and bound (``branch-and-bound``): complete verification of ReLU networks.

Splits of unstable ReLUs with optimised slopes and multipliers (beta-CROWN, Wang et al., NeurIPS
2021; branching after De Palma et al. 2021), on each sample's condensed network. It begins where
``alpha-crown-intermediate`` ends, with its boxes, on the classes that it leaves open (for l2
``crown-ball`` too).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.verification.backward.condensation import RowsOverflow
from workers.verification.backward.quadratic_pass import has_quadratic_rule
from workers.verification.bounds.alpha_crown import alpha_pass, optimized_bound
from workers.verification.bounds.alpha_crown_intermediate import tightened
from workers.verification.bounds.crown import final_forms
from workers.verification.bounds.crown_ball import crown_ball_margins
from workers.verification.clock import Clock, OutOfTime
from workers.verification.complete.condensed_network import CondensedNetwork, TooManyUnits
from workers.verification.complete.counterexamples import Counterexamples
from workers.verification.complete.domain_bounds import DomainBounds
from workers.verification.complete.search import Outcome, Search
from workers.verification.forward.margins import certified
from workers.verification.norms.per_sample import forward_cost
from workers.verification.problem import Problem
from workers.verification.protocol import Bound, Budget, Verdict
from workers.verification.region import Region
from workers.verification.rounding import Rounding, exact_arithmetic

log = logging.getLogger(__name__)

__all__ = ["BranchAndBound"]

#: Classes that are searched together, where more are open.
TOGETHER = 256


@dataclass(frozen=True, kw_only=True)
class BranchAndBound(Bound):
    """Splits until a sample is decided; at most ``most_passes`` plain forward passes for it.

    setup: passes of what comes before the search, of ``expected_passes``; search_share: of
    ``most_passes`` for one step of a radius search; search: how a sample is gone through.
    """

    most_passes: float
    search: type[Search] = Search
    setup: float = 15_000.0
    search_share: float = 0.02

    @property
    def max_passes(self) -> float:
        """What a sample that stays undecided costs."""
        return self.most_passes

    def price(self, *, tightest: bool) -> float:
        """As ``Bound.price``: what an attempt may take at most."""
        return self._most(tightest=tightest)

    def _most(self, *, tightest: bool) -> float:
        share = self.search_share if tightest else 1.0
        return min(self.most_passes, self.setup + share * self.most_passes)

    def attempt(self, problem: Problem, region: Region, labels: Tensor, budget: Budget) -> Verdict:
        """As ``Bound.attempt``, sample by sample: its domains alone fill a batch."""
        verdict = Verdict.undecided(len(labels))
        points = region.x.clone()
        opened = torch.zeros(len(labels), dtype=torch.int64)
        arithmetics = problem.arithmetics()
        if not arithmetics:
            return verdict
        with exact_arithmetic():
            for row, label in enumerate(labels.tolist()):
                if budget.clock.over():
                    break
                part = region.part(slice(row, row + 1), problem.device)
                found = self._sample(problem, part, label, budget)
                verdict.proved[row] = found.proved
                verdict.least_margin[row] = found.least
                verdict.spent[row] = min(found.passes, self.max_passes)
                opened[row] = found.open
                if found.point is not None:
                    verdict.falsified[row] = True
                    points[row] = found.point.cpu()
                budget.report(torch.tensor([row]), verdict.proved[row : row + 1])
        return replace(verdict, counterexample=points, open_domains=opened)

    def _sample(self, problem: Problem, region: Region, label: int, budget: Budget) -> Outcome:
        clock = budget.clock
        passes = min(budget.passes, self._most(tightest=budget.tightest))
        if budget.sample_time_s is not None:
            ends = clock.now() + budget.sample_time_s
            ends = ends if clock.deadline is None else min(ends, clock.deadline)
            clock, passes = Clock(ends, clock.report, clock.now), math.inf
        try:
            return self._searched(problem, region, label, clock, passes)
        except OutOfTime:
            return Outcome(False, -math.inf, 0, self.setup)

    def _searched(
        self, problem: Problem, region: Region, label: int, clock: Clock, passes: float
    ) -> Outcome:
        rounding, dtype = problem.arithmetics()[-1]
        compiled = problem.compiled
        labels = torch.tensor([label], device=problem.device)
        backward, margins = alpha_pass(compiled, region, labels, rounding, dtype, clock=clock)
        if not bool(certified(margins)) and not bool(torch.isneginf(margins).any()):
            backward = tightened(backward, labels.new_zeros(1))
            margins = final_forms(backward, labels, margins, optimized_bound)
        quadratic = all(has_quadratic_rule(step.op) for step in compiled.steps)
        if region.norm == "l2" and quadratic and not bool(certified(margins)):
            # Ball and box together: where that proves a class, no line is needed.
            found = crown_ball_margins(compiled, region, labels, rounding, dtype, clock=clock)
            margins = torch.fmax(margins, found)
        least = float(margins.amin())
        # Rows of -inf: the head itself, or the boxes, may overflow.
        if least > 0.0 or math.isinf(least):
            return Outcome(least > 0.0, least, 0, self.setup)
        classes = (~(margins[0] > 0)).nonzero().flatten()
        # The hardest first: where one of them stays open, the others need not be looked at.
        classes = classes[torch.argsort(margins[0, classes], stable=True)]
        parts = classes.split(TOGETHER) if len(classes) > TOGETHER else (classes.sort().values,)
        outcome = Outcome(True, math.inf, 0, 0.0)
        seen = 0
        for part in parts:
            before, seen = outcome, seen + len(part)
            try:
                network = CondensedNetwork.of(backward, label, part)
            except (TooManyUnits, RowsOverflow) as error:
                log.info("branch and bound leaves a sample: %s", error)
                return Outcome(False, least, 0, self.setup + before.passes)
            left = passes - self.setup - before.passes
            outcome = self._of_classes(problem, region, label, network, clock, left)
            outcome = replace(
                outcome,
                least=min(before.least, outcome.least),
                passes=before.passes + outcome.passes,
            )
            if not outcome.proved:
                break
        unseen = classes[seen:]
        least = min([outcome.least, *margins[margins > 0].tolist(), *margins[0, unseen].tolist()])
        return replace(
            outcome,
            least=least,
            open=outcome.open + len(unseen),
            passes=outcome.passes + self.setup,
        )

    def _of_classes(
        self,
        problem: Problem,
        region: Region,
        label: int,
        network: CondensedNetwork,
        clock: Clock,
        passes: float,
    ) -> Outcome:
        """The search for the classes that the condensed network asks for."""
        compiled = problem.compiled
        proof = Rounding.sound(torch.float64) if problem.sound else Rounding.ignored()
        quick = torch.float32 if compiled.float32_safe else torch.float64
        searched = self.search(
            DomainBounds(network, region, Rounding.ignored(), quick, clock),
            DomainBounds(network, region, proof, torch.float64, clock),
            Counterexamples(compiled, region, label, clock),
            forward_cost(compiled),
            passes=passes,
            clock=clock,
        )
        return searched.run()
