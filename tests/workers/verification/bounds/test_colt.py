"""Bounds in a fixed order: what one of them proves is proved, and each sees only what is open."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tests.workers.verification.certification import CPU
from tests.workers.verification.networks import dense_network
from workers.verification.bounds.zonotope import zonotope_margins
from workers.verification.cascade.bound_table import BOUNDS, COLT
from workers.verification.clock import Clock
from workers.verification.complete.in_turn import InTurn, all_cover, memory_of
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.protocol import Bound, Budget, Verdict, activation_memory
from workers.verification.region import Region


def case(count: int = 6) -> tuple[Problem, Region, Tensor, Tensor]:
    """Of these samples zonotopes prove some, COLT more, and some are open to the end."""
    network = dense_network([6, 14, 14, 14, 3], 1)
    x = torch.rand(count, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = network(x)
    top = logits.topk(2, dim=1)
    margin = (top.values[:, 0] - top.values[:, 1]).double()
    epsilon = torch.full((count,), 0.2, dtype=torch.float64)
    epsilon[-1] = 1.0
    problem = Problem(CompiledNetwork.compile(network), True, CPU)
    return problem, Region(x, epsilon, "linf", False), top.indices[:, 0], margin


def test_colt_proves_what_its_stages_prove_and_nothing_else() -> None:
    problem, region, labels, margin = case()
    each = [bound.attempt(problem, region, labels, Budget(margin)) for bound in COLT]
    both = BOUNDS["colt"].attempt(problem, region, labels, Budget(margin))
    assert torch.equal(both.proved, each[0].proved | each[1].proved | each[2].proved)
    least = torch.where(each[0].proved, each[0].least_margin, -torch.inf)
    assert bool((both.least_margin >= least).all())
    assert 0 < int(each[0].proved.sum()) < int(both.proved.sum()) < len(labels)
    first = COLT[0].expected_passes
    assert torch.equal(both.spent == first, each[0].proved), "no more is tried on what is proved"
    assert bool((both.spent <= BOUNDS["colt"].max_passes).all())
    assert torch.equal(both.falsified, each[2].falsified & ~both.proved)


@dataclass(frozen=True, kw_only=True)
class Told(Bound):
    """Decides what it is told to, by the first pixel, and remembers what it saw."""

    proves: float
    breaks: float
    seen: list[Any] = field(default_factory=list)

    def attempt(self, problem: Problem, region: Region, labels: Tensor, budget: Budget) -> Verdict:
        first = region.x[:, 0]
        self.seen.append((first.tolist(), budget.passes, [dict(s) for s in budget.states]))
        for state in budget.states:
            state["asked"] = self.name
        verdict = Verdict.undecided(len(labels))
        verdict.proved.copy_(first == self.proves)
        verdict.falsified.copy_(first == self.breaks)
        verdict.spent.fill_(3.0)
        budget.report(torch.arange(len(labels)), verdict.proved)
        return replace(verdict, counterexample=region.x + 10.0)


def told(name: str, proves: float, breaks: float) -> Told:
    return Told(
        name=name,
        norms=("linf",),
        has_rule=lambda op: True,
        expected_passes=5.0,
        memory=activation_memory(1),
        proves=proves,
        breaks=breaks,
    )


def test_each_stage_sees_what_is_open_its_own_states_and_what_is_left_to_spend() -> None:
    stages = told("one", 1.0, 2.0), told("two", 3.0, 4.0)
    method = InTurn(
        name="both",
        norms=("linf",),
        has_rule=all_cover(stages),
        expected_passes=10.0,
        memory=memory_of(stages),
        stages=stages,
    )
    x = torch.arange(6.0)[:, None]
    epsilon = torch.ones(6, dtype=torch.float64)
    states: list[dict[str, Any]] = [{} for _ in range(6)]
    reported: set[int] = set()

    def report(rows: Tensor, proved: Tensor) -> None:
        reported.update(rows[proved].tolist())

    budget = Budget(epsilon, passes=7.0, states=states, report=report)
    problem = case(1)[0]
    found = method.attempt(
        problem, Region(x, epsilon, "linf", False), torch.zeros(6).long(), budget
    )
    assert stages[0].seen == [([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 5.0, [{}] * 6)]
    assert stages[1].seen == [([0.0, 3.0, 4.0, 5.0], 4.0, [{}] * 4)]
    assert found.proved.nonzero().flatten().tolist() == [1, 3]
    assert found.falsified.nonzero().flatten().tolist() == [2, 4]
    assert found.counterexample is not None
    assert found.counterexample[[2, 4], 0].tolist() == [12.0, 14.0]
    assert found.spent.tolist() == [6.0, 3.0, 3.0, 6.0, 6.0, 6.0]
    assert reported == {1, 3}
    assert states[3] == {"one": {"asked": "one"}, "two": {"asked": "two"}}
    late = replace(budget, clock=Clock(0.0, now=lambda: 1.0))
    assert not bool(method.attempt(problem, Region(x, epsilon, "linf", False),
                                   torch.zeros(6).long(), late).proved.any())  # fmt: skip


def test_a_radius_is_searched_with_the_slopes_of_least_area() -> None:
    problem, region, labels, margin = case(3)
    budget = Budget(margin, tightest=True)
    found = BOUNDS["zonotope"].attempt(problem, region, labels, budget)
    arithmetic = problem.arithmetics()[0]
    with torch.no_grad():
        plain = zonotope_margins(problem.compiled, region, labels, *arithmetic, iterations=0)
    assert torch.allclose(found.least_margin, plain.amin(1), rtol=1e-6)
    assert found.spent.tolist() == [1_500.0] * 3
    assert BOUNDS["colt"].price(tightest=True) < BOUNDS["colt"].price(tightest=False)
