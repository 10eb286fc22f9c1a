"""Mixed-integer programming (``milp``): a sample as a programme over its unstable ReLUs, by HiGHS.

The encoding of Tjeng et al. (ICLR 2019) with the boxes that are known; its relaxation is the
programme of triangles. A solver's branching tree cannot be checked, and its tolerances are no
proof, so the branching is ours and HiGHS solves the linear programmes: every dual is a hint that is
proved like any other number, every point that attains a least value is tried on the network.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from workers.verification.complete.domains import Domains
from workers.verification.complete.linear_programme import LinearProgramme
from workers.verification.complete.refined_boxes import refined
from workers.verification.complete.search import CHILD, HINTED, ROOT, Effort, Search

__all__ = ["ProgrammeSearch"]

#: Programmes after one batch of bounds: at most, and whatever they promise.
MOST, TRIALS = 32, 2
#: Plain forward passes that a programme costs at least.
LEAST_PASSES = 500.0
#: A programme is solved where so many times what such ones gain would prove the domain; of the
#: running mean of their median gains, what is kept from one batch to the next.
HOPE, KEPT = 1.5, 0.8
#: The round before which boxes are refined, and the share of the work left that this may take.
REFINED_AT, REFINED_SHARE = 6, 0.3


class ProgrammeSearch(Search):
    """As ``Search``, with a solver's numbers for domains that gradient steps leave nearly proved,
    and over refined boxes where a few rounds are not enough."""

    _solver: LinearProgramme | None = None
    _gained, _price = 0.0, LEAST_PASSES

    def _start(self, domains: Domains) -> Domains:
        self._enter()
        return super()._start(domains)

    def _round(self, taken: Domains, number: int) -> tuple[bool, Domains]:
        if number == REFINED_AT:
            self._refine()
        return super()._round(taken, number)

    def _refine(self) -> None:
        """Narrower boxes hold every execution: domains and their bounds stay as they are."""
        most = REFINED_SHARE * (self.passes - self.spent) / self.row_passes
        network, rows = refined(self.guide, self.proof, most)
        self._pay(rows)
        self.guide = replace(self.guide, network=network)
        self.proof = replace(self.proof, network=network)
        self._enter()

    def _enter(self) -> None:
        """A programme of its own for these boxes; of a ball, too: the box around it."""
        self._solver = LinearProgramme.of(self.guide.network, self.guide.region)

    def _programme(self) -> LinearProgramme | None:
        return self._solver

    def _bounded(self, domains: Domains, effort: Effort) -> Domains:
        left = super()._bounded(domains, effort)
        # Leaves have been given the solver's numbers already.
        asked = self._solver is not None and effort in (ROOT, CHILD)
        chosen = self._promising(left) if asked else left.objective[:0]
        if self._solver is None or not len(chosen):
            return left
        hinted, before = left.some(chosen), left.bound[chosen]
        hints = self._solver.solved(hinted, self.clock)
        self._price = max(LEAST_PASSES, hints.work / self.forward_cost / len(hinted))
        self.spent += self._price * len(hinted)
        hinted.numbers.copy_(hints.numbers)
        still = super()._bounded(hinted, HINTED)
        gains = (hinted.bound - before)[torch.isfinite(before)]
        if len(gains):
            self._gained = KEPT * self._gained + (1.0 - KEPT) * float(gains.median())
        if len(still) and bool(hints.found.any()):
            self._broken(hints.points[hints.found], steps=0)
        rest = torch.ones(len(left), dtype=torch.bool, device=chosen.device)
        rest[chosen] = False
        return left.some(rest).followed_by(still)

    def _promising(self, domains: Domains) -> Tensor:
        """Positions of the domains that a programme is solved for, the nearest to 0 first."""
        order = torch.argsort(domains.bound, descending=True, stable=True)
        near = int((domains.bound > -HOPE * self._gained).sum())
        room = max(0.0, self.passes - self.spent) / self._price
        return order[: int(min(MOST, max(TRIALS, near), room))]
