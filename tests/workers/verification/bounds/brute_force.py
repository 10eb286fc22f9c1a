"""A complete method for networks of one input and one hidden layer: as a new bound is written.

The margins are piecewise linear in the only pixel, so their least value lies at a kink or at an end
of the region. This file and one row in the table of bounds is all that a bound needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.layers.kinds import Layer, ReLU
from workers.verification.attacks.pgd import project
from workers.verification.graph.affine import Affine
from workers.verification.graph.affine_maps import Dense
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.protocol import Bound, Budget, Verdict, activation_memory
from workers.verification.region import Region
from workers.verification.rounding import Rounding

__all__ = ["BruteForce", "brute_force"]


@dataclass(frozen=True, kw_only=True)
class BruteForce(Bound):
    """Evaluates the network at every kink of the region: one pass each, ``most_points`` of them.

    Keeps the kinks of the network in the samples' states; counts there how often it was asked.
    """

    most_points: float = 64.0

    @property
    def max_passes(self) -> float:
        """One for every point."""
        return self.most_points

    def attempt(self, problem: Problem, region: Region, labels: Tensor, budget: Budget) -> Verdict:
        """As ``Bound.attempt``. Points beyond ``budget.passes`` are not looked at."""
        compiled = problem.compiled
        verdict = Verdict.undecided(len(labels))
        worst = region.x.to(torch.float64).clone()
        lower, upper = region.box(torch.float64)
        for row, label in enumerate(labels.tolist()):
            if budget.clock.over():
                break
            state = budget.states[row] if budget.states else {}
            state["asked"] = state.get("asked", 0) + 1
            kinks = state.setdefault("kinks", _kinks(compiled))
            low, high = lower[row], upper[row]
            points = torch.cat([low, high, kinks[(kinks > low) & (kinks < high)]])
            tried = points[: int(min(budget.passes, 2**31))]
            margins, slack = _margins(compiled, tried, label, sound=problem.sound)
            least = (margins - slack).amin()
            verdict.spent[row] = len(tried)
            verdict.falsified[row] = bool((margins < -slack).any())
            worst[row] = tried[margins.argmin()]
            if len(tried) == len(points):
                verdict.least_margin[row] = least
                verdict.proved[row] = bool(least > 0)
        points = project(
            worst.float(), region.x, region.epsilon, norm=region.norm, clip=region.clip
        )
        return replace(verdict, counterexample=points)


def has_rule(op: Affine | Layer) -> bool:
    """A dense layer and a ReLU; the head comes with the network."""
    return isinstance(op, Dense | ReLU)


def _kinks(compiled: CompiledNetwork) -> Tensor:
    """Where a hidden neuron changes its sign, [hidden] float64."""
    hidden, _ = compiled.steps
    assert isinstance(hidden.op, Dense)
    slopes = hidden.op.weight[:, 0]
    offsets = hidden.op.apply(torch.zeros(1, 1, dtype=torch.float64))[0]
    return -offsets / slopes


def _margins(
    compiled: CompiledNetwork, points: Tensor, label: int, *, sound: bool
) -> tuple[Tensor, Tensor]:
    """(least margin of the label, what rounding may change of it) at points [n], both [n]."""
    hidden, _ = compiled.steps
    assert isinstance(hidden.op, Dense)
    head = compiled.head
    zero = torch.zeros(1, 1, dtype=torch.float64)
    values = hidden.op.apply(points[:, None])
    logits = values.relu() @ head.weight.T + head.bias
    others = logits.clone()
    others[:, label] = -torch.inf
    margins = logits[:, label] - others.amax(1)
    size = hidden.op.apply(zero).abs() + hidden.op.absolute(points[:, None].abs())
    largest = (size @ head.absolute + head.bias_magnitude).amax(1)
    terms = 2.0 * (head.weight.shape[1] + 8)
    slack = 4.0 * Rounding.sound(torch.float32).deployed_gamma(terms) * largest
    return margins, slack if sound else torch.zeros_like(slack)


def brute_force(**changes: object) -> BruteForce:
    """The row of the table."""
    row = BruteForce(
        name="brute-force",
        norms=("l2", "linf"),
        has_rule=has_rule,
        expected_passes=20_000,
        memory=activation_memory(4),
    )
    return replace(row, **changes)  # type: ignore[arg-type]
