"""Every bound is asked to prove the distance of a known wrong input: whoever does lies."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from tests.workers.verification.adversary.search import Case
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.coverage import uncovered
from workers.verification.cascade.run import certify_samples
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.protocol import Bound, Budget
from workers.verification.region import Region
from workers.verification.results import CertificationRequest

__all__ = ["ASKED", "FALSE", "Tally", "ask"]

#: Asked shares of the distance to the nearest wrong input; from ``FALSE`` on each proof is false.
ASKED = (0.01, 0.5, 0.9, 1.0, 1.5, 30.0)
FALSE = 3

#: An epsilon has to be above 0.
SMALLEST = 1e-300

#: Bounds from this cost on are asked less often where not everything is asked.
EXPENSIVE = 5_000

#: Arithmetics (None: as the cascade runs), and how much more often than ``share`` each is asked.
ASKED_IN: dict[torch.dtype | None, float] = {torch.float32: 2.0, torch.float64: 1.0, None: 1.0}
CPU = torch.device("cpu")


@dataclass
class Tally:
    """What was asked and answered."""

    graphs: int = 0
    questions: int = 0
    #: Proofs of distances at which nothing wrong is known, and of how many such questions.
    proved: int = 0
    allowed: int = 0
    #: Of those at a hundredth of the distance.
    near: int = 0
    false: list[str] = field(default_factory=list)
    asked_of: dict[str, int] = field(default_factory=dict)
    proved_of: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, proved: list[bool]) -> bool:
        """Count one bound's answers to ``ASKED``; whether one of them is false."""
        self.questions += len(proved)
        self.allowed += FALSE
        self.proved += sum(proved[:FALSE])
        self.near += proved[0]
        self.asked_of[name] = self.asked_of.get(name, 0) + 1
        self.proved_of[name] = self.proved_of.get(name, 0) + proved[0]
        return any(proved[FALSE:])


def ask(case: Case, tally: Tally, name: str, *, seed: int = 0, share: float = 1.0) -> None:
    """Bounds in every arithmetic, and the cascade's radius: what is false goes to the tally.

    ``name`` is how the case is called there. share: of the ways to ask (norm, pixel box,
    arithmetic) that are tried, chosen by ``seed``; of the costliest bounds and of the
    cascade, which repeat what others prove, a quarter of that.
    """
    random = np.random.default_rng(seed)
    tally.graphs += 1
    compiled = CompiledNetwork.compile(case.network)
    covering = {name: bound for name, bound in BOUNDS.items() if uncovered(bound, compiled) is None}
    x, labels = torch.from_numpy(case.x), torch.tensor([case.label])
    others = np.delete(case.logits.astype(np.float64), case.label, axis=1).max()
    margin = torch.tensor([float(case.logits[0, case.label]) - float(others)], dtype=torch.float64)
    for ((norm, clip), (distance, _)), dtype in itertools.product(case.wrong.items(), ASKED_IN):
        if random.random() >= share * ASKED_IN[dtype]:
            continue
        problem = Problem(compiled, True, CPU, dtype)
        epsilons = [portion * distance for portion in ASKED]
        for bound in covering.values():
            if norm not in bound.norms or (
                share < 1.0 and bound.expected_passes >= EXPENSIVE and random.random() > 0.25
            ):
                continue
            proved = _proved(problem, bound, x, labels, epsilons, margin, norm=norm, clip=clip)
            if tally.count(f"{bound.name} {norm}", proved):
                tally.false.append(f"{name}: {bound.name}, {norm}, clip {clip}, {dtype}")
    for (norm, clip), (distance, _) in case.wrong.items():
        if random.random() >= share / 4:
            continue
        cheap = [method for method in covering if BOUNDS[method].expected_passes < EXPENSIVE]
        methods = ["auto", *covering] if share >= 1.0 else cheap
        if not methods:
            continue
        method = methods[int(random.integers(len(methods)))]
        # The same input in another batch may be the wrong one, at distance 0.
        asked = (Fraction(distance or SMALLEST), Fraction(1, 10))
        found = certify_samples(
            case.network,
            case.x,
            np.array([case.label]),
            np.array([0]),
            CertificationRequest(norm, asked, method, clip=clip, attack=None),
            deployed=case.deployed,
            deployed_logits=case.logits,
            device=CPU,
        )
        tally.questions += 1
        # A radius of 0 says nothing.
        if 0.0 < found.radius[0] >= distance or found.certified[0, 0]:
            tally.false.append(f"{name}: radius by {method}, {norm}, clip {clip}")


def _proved(
    problem: Problem,
    bound: Bound,
    x: Tensor,
    labels: Tensor,
    epsilons: list[float],
    margin: Tensor,
    *,
    norm: str,
    clip: bool,
) -> list[bool]:
    """The bound's answer at every distance."""
    count = len(epsilons)
    reach = torch.tensor(epsilons, dtype=torch.float64)
    region = Region(x.expand(count, *x.shape[1:]).contiguous(), reach, norm, clip)
    budget = Budget(margin.expand(count))
    return bound.attempt(problem, region, labels.expand(count), budget).proved.tolist()
