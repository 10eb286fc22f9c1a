"""Branch and bound of one sample: domains are split until all are proved, or nothing is left to do.

The domain with the lowest bound comes first, ``WIDTH`` of them in a round. Work is counted in plain
forward passes and the order depends on bounds alone, so that the same sample gives the same answer
wherever it is computed. What ends early is undecided, never anything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.verification.clock import Clock, OutOfTime, rows_per_piece
from workers.verification.complete.branching import CANDIDATES, branch, split, undecided
from workers.verification.complete.clipping import SHARES, clip_inputs, refine_units
from workers.verification.complete.condensed_network import CondensedNetwork
from workers.verification.complete.counterexamples import Counterexamples
from workers.verification.complete.domain_bounds import DomainBounds
from workers.verification.complete.domains import Domains
from workers.verification.complete.linear_programme import LinearProgramme
from workers.verification.region import Region

__all__ = ["CHILD", "HINTED", "ROOT", "Effort", "Outcome", "Search", "roots", "within_inputs"]

#: Domains of one round.
WIDTH = 128
#: Multiplications of a batch below which its size costs nothing, and units split at once in one.
SMALL, DEEPEST = 2**20, 3
#: Bytes of the domains that are kept.
QUEUE_BYTES = 2**30
#: Of the work for bounds, what narrower boxes of units may take beside it.
REFINED_SHARE = 0.5
#: Inputs of which boxes are cut, at most: of more, one alone hardly ever moves the objective.
FEW_INPUTS = 64


@dataclass(frozen=True)
class Effort:
    """Gradient steps, rates (of slopes, of multipliers) and their decay."""

    steps: int
    rates: tuple[float, float]
    decay: float

    @property
    def ways(self) -> float:
        """Ways back and forth of one row, its proof included."""
        return 2.0 * (self.steps + 1) + 1.0


#: At the root; at children, which begin where their parents ended; where nothing is left to split,
#: and where a solver has given the numbers.
ROOT, CHILD, LEAF, HINTED = (
    Effort(50, (0.2, 0.2), 0.96),
    Effort(16, (0.1, 0.2), 0.9),
    Effort(100, (0.1, 0.3), 0.96),
    Effort(0, (0.0, 0.0), 1.0),
)
#: Points of a round that gradient steps begin at, and their number; rounds between.
STARTS, STEPS = 8, 20
#: Bounds above this share of the objective's magnitude need no more gradient steps.
ENOUGH = 2.0**-22


@dataclass(frozen=True)
class Outcome:
    """proved: every domain; least: the least bound of all domains, proved ones included; open:
    domains left; passes: plain forward passes that it cost; point [*shape] float32: a
    counterexample, to be replayed."""

    proved: bool
    least: float
    open: int
    passes: float
    point: Tensor | None = None


class Search:
    """One sample's search. guide, proof: bounds without and with the rounding of their arithmetic;
    forward_cost: multiplications of a plain forward pass; passes: of them at most."""

    def __init__(
        self,
        guide: DomainBounds,
        proof: DomainBounds,
        counterexamples: Counterexamples,
        forward_cost: float,
        *,
        passes: float,
        clock: Clock,
    ) -> None:
        self.guide, self.proof, self.counterexamples = guide, proof, counterexamples
        self.clock, self.passes, self.spent = clock, passes, 0.0
        self.forward_cost = max(1.0, forward_cost)
        network = guide.network
        #: Of one row, one way; of a point on which the network is tried, there and back.
        self.row_passes = max(1.0, network.multiplications / self.forward_cost)
        #: Of l2 balls neither pays: what is lost sits in the ball of deeper layers.
        self.refines = guide.region.norm == "linf"
        self.clips = self.refines and network.inputs <= FEW_INPUTS
        self.together = rows_per_piece(3 * network.multiplications, network.lower.device)
        sizes = network.objectives.weight.abs() @ network.reach
        self.enough = ENOUGH * sizes
        self.least = math.inf
        #: Rows carried back, there and forth, for bounds of domains, and for boxes of units.
        self.searched, self.refined = 0.0, 0.0
        held = 24 * network.count + 16 * network.inputs * self.clips
        self.most = max(WIDTH, QUEUE_BYTES // max(1, held))

    def run(self) -> Outcome:
        """Until everything is proved, something is falsified, or time or work is spent."""
        open_domains = roots(self.guide.network, self.guide.dtype)
        if self.clips:
            open_domains = within_inputs(open_domains, self.guide.region)
        try:
            open_domains = self._start(open_domains)
            number = 0
            while len(open_domains) and self.counterexamples.point is None:
                width = self._width()
                if not width or len(open_domains) > self.most:
                    break
                order = torch.argsort(open_domains.bound, stable=True)
                chosen, rest = order[:width], order[width:].sort().values
                taken = open_domains.some(chosen)
                ended, children = self._round(taken, number)
                if ended:
                    break
                open_domains = open_domains.some(rest).followed_by(children)
                number += 1
        except OutOfTime:
            pass
        least = min(self.least, *open_domains.bound.tolist(), math.inf)
        point = self.counterexamples.point
        proved = not len(open_domains) and point is None
        return Outcome(proved, least, len(open_domains), self.spent, point)

    def _start(self, domains: Domains) -> Domains:
        """What stays open of the whole region."""
        return self._bounded(domains, ROOT)

    def _width(self) -> int:
        """Domains of the next round that the work left pays for."""
        each = 3.0 + 2.0 * CANDIDATES + 2.0**DEEPEST * CHILD.ways
        left = self.passes - self.spent - 3.0 * STARTS * (STEPS + 1)
        return int(min(WIDTH, max(0.0, left / (each * self.row_passes + 1.0))))

    def _round(self, taken: Domains, number: int) -> tuple[bool, Domains]:
        """(whether the search has ended, the children that are not proved)."""
        trace = self.guide.traced(taken)[1]
        self._pay(2 * len(taken))
        # Gradient steps at rounds 0, 1, 3, 7, ..., from the lowest bounds.
        if self._broken(trace.points, steps=0) or (
            number & (number + 1) == 0 and self._broken(trace.points[:STARTS], steps=STEPS)
        ):
            return True, taken
        leaf = ~undecided(self.guide, taken).any(1)
        if bool(leaf.any()):
            if not self._leaves(taken.some(leaf)):
                return True, taken
            inner = ~leaf
            taken = taken.some(inner)
            if not len(taken):
                return False, taken
            trace = self.guide.traced(taken)[1]
        units, rows = branch(self.guide, taken, trace)
        self._pay(rows)
        return False, self._bounded(split(taken, units, self._depth(len(taken))), CHILD)

    def _depth(self, domains: int) -> int:
        """How many units are split at once: several where the batch would be a small one."""
        rows = min(WIDTH, SMALL // max(1, self.guide.network.multiplications))
        return max(1, min(DEEPEST, (max(1, rows) // (2 * domains)).bit_length()))

    def _bounded(self, domains: Domains, effort: Effort) -> Domains:
        """The domains that stay open; each with its numbers improved and its bound proved."""
        for start in range(0, len(domains), self.together):
            part = domains.some(torch.arange(start, min(start + self.together, len(domains))))
            self.guide.climb(
                part, effort.steps, effort.rates, effort.decay, self.enough[part.objective]
            )
            found, planes = self.proof.planes(part)
            enough = self.enough[part.objective]
            # Boxes that hold what is not above ``enough`` prove no more than that.
            if effort is not ROOT and (self.clips or self.refined > 0):
                part.bound = torch.maximum(part.bound, torch.minimum(found, enough))
            else:
                part.bound = torch.maximum(part.bound, found)
            if self.clips:
                clip_inputs(self.proof, part, found, planes, enough)
            domains.put(slice(start, start + len(part)), part)
        self._pay(effort.ways * len(domains))
        self.searched += effort.ways * len(domains)
        done = domains.bound > 0
        self.least = min([self.least, *domains.bound[done].tolist()])
        return self._refined(domains.some(~done))

    def _refined(self, domains: Domains) -> Domains:
        """The same, those of the lowest bounds over narrower boxes, as far as that may take its
        share of the work; less what that proves."""
        each = 2.0 * len(SHARES) * self.guide.network.count
        more = REFINED_SHARE * self.searched - self.refined
        room = int(min(more, (self.passes - self.spent) / self.row_passes) / max(1.0, each))
        if not self.refines or room <= 0 or not len(domains):
            return domains
        lowest = torch.argsort(domains.bound, stable=True)[:room]
        part = domains.some(lowest)
        enough = self.enough[part.objective]
        empty, rows = refine_units(self.proof, part, enough)
        self.refined += rows
        self._pay(rows)
        domains.put(lowest, part)
        self.least = min([self.least, *enough[empty].tolist()])
        kept = torch.ones(len(domains), dtype=torch.bool, device=lowest.device)
        kept[lowest[empty]] = False
        return domains.some(kept)

    def _leaves(self, leaves: Domains) -> bool:
        """Whether all of them are proved: nothing is left to split, what remains is linear.

        Where one is not, the search has ended: no split can help it.
        """
        left = leaves
        programme = self._programme()
        if programme is not None:
            left.numbers.copy_(programme.solved(left, self.clock).numbers)
            left = self._bounded(left, HINTED)
        if len(left):
            left = self._bounded(left, LEAF)
        if not len(left):
            return True
        points = self.guide.traced(left)[1].points
        self._broken(points[:STARTS], steps=2 * STEPS)
        return False

    def _programme(self) -> LinearProgramme | None:
        """For the numbers of leaves: None where the region is no box."""
        if self.guide.region.norm != "linf":
            return None
        return LinearProgramme.of(self.guide.network, self.guide.region)

    def _broken(self, points: Tensor, *, steps: int) -> bool:
        self.spent += 3.0 * len(points) * (steps + 1)
        return self.counterexamples.found(points, steps)

    def _pay(self, rows: float) -> None:
        self.spent += rows * self.row_passes


def roots(network: CondensedNetwork, dtype: torch.dtype) -> Domains:
    """The whole region, once for every objective, with the lines' own slopes."""
    count = len(network.classes)
    device = network.lower.device
    return Domains(
        torch.arange(count, device=device),
        torch.zeros(count, network.count, dtype=torch.int8, device=device),
        network.lines.lower_slope.to(dtype).expand(count, -1).clone(),
        torch.full((count,), -torch.inf, dtype=torch.float64, device=device),
        network.lower.expand(count, -1).clone(),
        network.upper.expand(count, -1).clone(),
        *(torch.zeros(count, 0, dtype=torch.float64, device=device) for _ in range(2)),
    )


def within_inputs(domains: Domains, region: Region) -> Domains:
    """The same with boxes of the inputs of their own, to be clipped."""
    low, high = (end.flatten().expand(len(domains), -1) for end in region.box(torch.float64))
    return replace(domains, low=low.clone(), high=high.clone())
