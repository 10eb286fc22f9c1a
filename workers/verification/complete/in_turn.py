"""Bounds in a fixed order, each on what those before it left open: one method made of several.

``colt`` is such a one: COLT's order of attempts (Balunovic and Vechev 2020, section 6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.protocol import Bound, Budget, HasRule, Verdict
from workers.verification.region import Region

__all__ = ["InTurn", "all_cover", "memory_of"]


@dataclass(frozen=True, kw_only=True)
class InTurn(Bound):
    """``stages`` in this order; a sample goes on to the next where the last has not decided it.

    A step of a radius search is left to the stages that do not search themselves.
    """

    stages: tuple[Bound, ...]

    @property
    def max_passes(self) -> float:
        """What a sample costs that none decides."""
        return sum(bound.max_passes for bound in self.stages)

    def price(self, *, tightest: bool) -> float:
        """As ``Bound.price``: of all of them."""
        return sum(bound.price(tightest=tightest) for bound in self._stages(tightest=tightest))

    def _stages(self, *, tightest: bool) -> list[Bound]:
        return [
            bound
            for bound in self.stages
            if not tightest or bound.max_passes <= bound.expected_passes
        ]

    def attempt(self, problem: Problem, region: Region, labels: Tensor, budget: Budget) -> Verdict:
        """As ``Bound.attempt``. Each stage keeps its own states of a sample."""
        verdict = Verdict.undecided(len(labels))
        points = region.x.clone()
        opened: Tensor | None = None
        for bound in self._stages(tightest=budget.tightest):
            rows = (~(verdict.proved | verdict.falsified)).nonzero().flatten()
            if not rows.numel() or budget.clock.over():
                break
            part = region.part(rows, region.x.device)
            found = bound.attempt(
                problem, part, labels[rows], self._budget(bound, budget, rows, verdict)
            )
            verdict.proved[rows] = found.proved
            verdict.least_margin[rows] = torch.fmax(verdict.least_margin[rows], found.least_margin)
            verdict.spent[rows] += found.spent
            verdict.falsified[rows] = found.falsified
            if found.open_domains is not None:
                opened = torch.zeros(len(labels), dtype=torch.int64)
                opened[rows] = found.open_domains
            if found.counterexample is not None:
                points[rows] = found.counterexample.to(points)
        broken = bool(verdict.falsified.any())
        return replace(verdict, counterexample=points if broken else None, open_domains=opened)

    def _budget(self, bound: Bound, budget: Budget, rows: Tensor, verdict: Verdict) -> Budget:
        """A stage's part of the budget, for these rows of the batch."""
        left = budget.passes - float(verdict.spent[rows].max())
        chosen = rows.tolist() if budget.states else []
        states = [budget.states[row].setdefault(bound.name, {}) for row in chosen]
        return replace(
            budget,
            margin=budget.margin[rows],
            passes=min(bound.price(tightest=budget.tightest), left),
            states=states,
            report=lambda part, proved: budget.report(rows[part], proved),
        )


def all_cover(stages: tuple[Bound, ...]) -> HasRule:
    """A step is covered where all of them cover it."""
    return lambda op: all(bound.has_rule(op) for bound in stages)


def memory_of(stages: tuple[Bound, ...]) -> Callable[[CompiledNetwork], float]:
    """What the largest of them takes."""
    return lambda compiled: max(bound.memory(compiled) for bound in stages)
