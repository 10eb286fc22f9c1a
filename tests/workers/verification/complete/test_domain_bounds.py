"""Bounds over domains: true for any numbers, and as tight as the linear programme."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from models.layers.kinds import Linear
from models.network import Network
from tests.extent import examples
from tests.workers.verification.complete.samples import Sample, sample_of
from tests.workers.verification.networks import dense_network
from workers.verification.complete.domain_bounds import DomainBounds
from workers.verification.complete.domains import Domains
from workers.verification.complete.linear_programme import LinearProgramme
from workers.verification.complete.search import roots
from workers.verification.rounding import Rounding

F64 = torch.float64


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def proof(sample: Sample) -> DomainBounds:
    return DomainBounds(sample.condensed, sample.region, Rounding.sound(F64), F64)


def guide(sample: Sample) -> DomainBounds:
    return DomainBounds(sample.condensed, sample.region, Rounding.ignored(), torch.float32)


def small(seed: int, norm: str = "linf", scale: float = 1.0, clip: bool = True) -> Sample:
    x = torch.rand(1, 4, generator=torch.Generator().manual_seed(seed))
    return sample_of(dense_network([4, 7, 6, 3], seed, scale=scale), x, 0.2, norm, clip=clip)


def drawn(sample: Sample, before: Tensor, seed: int) -> Domains:
    """Domains around some executions: a few sides as they are there, numbers without any sense."""
    generator = torch.Generator().manual_seed(seed)
    domains = roots(sample.condensed, torch.float32)
    rows = torch.randint(len(domains), (12,), generator=generator)
    domains = domains.some(rows)
    place = torch.randint(len(before), (12,), generator=generator)
    sides = torch.where(before[place] >= 0, 1, -1).to(torch.int8)
    decided = torch.rand(sides.shape, generator=generator) < 0.4
    domains.sides = torch.where(decided & sample.condensed.lines.splits, sides, 0).to(torch.int8)
    domains.numbers = 1.5 * torch.rand(sides.shape, generator=generator) - 0.25
    domains.numbers *= 10.0 ** torch.randint(-2, 3, (12, 1), generator=generator)
    return domains


@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["l2", "linf"]),
    clip=st.booleans(),
    scale=st.sampled_from([1e-5, 1.0, 1e5]),
)
@settings(max_examples=examples(15), deadline=None)
def test_any_numbers_bound_every_execution_of_a_domain(
    seed: int, norm: str, clip: bool, scale: float
) -> None:
    sample = small(seed, norm, scale, clip)
    _, before, margins = sample.executed(60, seed)
    domains = drawn(sample, before, seed)
    bounds = proof(sample).proved(domains)
    assert bool(torch.isfinite(bounds).any())
    sides = domains.sides[:, None].double()
    inside = (sides * before[None] >= 0).all(2)
    assert bool(inside.any(1).all())
    values = margins.T[domains.objective]
    assert bool((~inside | (values >= bounds[:, None])).all())


@given(seed=st.integers(0, 10**6))
@settings(max_examples=examples(10), deadline=None)
def test_both_children_together_hold_every_execution(seed: int) -> None:
    sample = small(seed)
    _, before, _ = sample.executed(60, seed)
    domains = drawn(sample, before, seed)
    domains = domains.some((domains.sides == 0).any(1))
    if not len(domains):
        return
    units = (domains.sides == 0).float().argmax(1)
    children = domains.split(units)
    assert len(children) == 2 * len(domains)
    rows = torch.arange(len(domains))
    assert bool((children.sides[rows, units] == 1).all())
    assert bool((children.sides[len(domains) + rows, units] == -1).all())
    inside = (children.sides[:, None].double() * before[None] >= 0).all(2)
    parents = (domains.sides[:, None].double() * before[None] >= 0).all(2)
    assert bool(((inside[: len(domains)] | inside[len(domains) :]) == parents).all())


def programme(network: Network, sample: Sample, domains: Domains, row: int) -> float:
    """The least objective over the triangles of the original layers, by HiGHS; inf: no point."""
    layers = [network.layer(node.name) for node in network.nodes]
    maps = [layer for layer in layers if isinstance(layer, Linear)]
    units = iter(range(sample.condensed.count))
    lower, upper = (end.flatten().numpy() for end in sample.region.box(F64))
    sizes = [len(lower)] + [2 * len(layer.weight) for layer in maps[:-1]]
    starts = np.cumsum([0, *sizes])
    width = int(starts[-1])
    low, high = np.full(width, -np.inf), np.full(width, np.inf)
    low[: len(lower)], high[: len(lower)] = lower, upper
    equal, right, rows, limits = [], [], [], []
    source = slice(0, len(lower))
    for number, layer in enumerate(maps[:-1]):
        out = len(layer.weight)
        z, a = int(starts[number + 1]), int(starts[number + 1]) + out
        box = sample.backward.box(2 * number + 1)
        for i in range(out):
            row_of = np.zeros(width)
            row_of[source], row_of[z + i] = layer.weight[i].double().numpy(), -1.0
            equal.append(row_of)
            right.append(-float(layer.bias[i]))
            least, most = (float(end.flatten()[i]) for end in box)
            side = 0
            if least < 0 < most:
                side = int(domains.sides[row, next(units)])
            if side:
                least, most = (max(least, 0.0), most) if side > 0 else (least, min(most, 0.0))
            low[z + i], high[z + i] = least, most
            chord = 1.0 if least >= 0 else 0.0 if most <= 0 else most / (most - least)
            for slope, shift, sign in ((chord, -chord * min(least, 0.0), 1.0), (1.0, 0.0, -1.0)):
                if slope == 1.0 and sign < 0 and most <= 0:
                    continue
                held = np.zeros(width)
                held[a + i], held[z + i] = sign, -sign * slope
                rows.append(held)
                limits.append(sign * shift if most > 0 else 0.0)
            low[a + i] = 0.0
        source = slice(a, a + out)
    asked = sample.condensed.classes[domains.objective[row]]
    last = maps[-1]
    cost = np.zeros(width)
    cost[source] = (last.weight[sample.label] - last.weight[asked]).double().numpy()
    shift = float(last.bias[sample.label].double() - last.bias[asked].double())
    answer = linprog(
        cost,
        A_ub=np.array(rows),
        b_ub=limits,
        A_eq=np.array(equal),
        b_eq=right,
        bounds=np.stack([low, high], 1),
        method="highs",
    )
    assert answer.status in (0, 2), answer.message
    return np.inf if answer.status == 2 else float(answer.fun) + shift


@given(seed=st.integers(0, 10**6))
@settings(max_examples=examples(4), deadline=None)
def test_the_best_numbers_reach_the_linear_programme_and_nothing_exceeds_it(seed: int) -> None:
    sample = small(seed)
    _, before, _ = sample.executed(60, seed)
    domains = drawn(sample, before, seed)
    domains.numbers = domains.numbers.clamp(0.0, 1.0)
    best = torch.tensor(
        [programme(sample.network, sample, domains, row) for row in range(len(domains))]
    )
    climbed = domains.some(torch.arange(len(domains)))
    enough = torch.full_like(climbed.bound, torch.inf)
    guide(sample).climb(climbed, 200, (0.1, 0.2), 0.98, enough)
    hinted = domains.some(torch.arange(len(domains)))
    solver = LinearProgramme.of(sample.condensed, sample.region)
    assume(sample.condensed.count > 0)
    assert solver is not None
    hinted.numbers = solver.solved(hinted).numbers
    for tried in (domains, climbed, hinted):
        assert bool((proof(sample).proved(tried) <= best + 1e-6).all())
    finite = torch.isfinite(best)
    lost = best - proof(sample).proved(hinted)
    # Rounding of the deployed network is part of the bound, and no part of the programme.
    assert float(lost[finite].max()) < 1e-3
    lost = best - proof(sample).proved(climbed)
    assert float(lost[finite].median()) < 0.02 * float(best[finite].abs().max() + 1.0)


def test_climbing_never_loses_and_a_row_is_not_changed_by_its_neighbours() -> None:
    sample = small(3)
    _, before, _ = sample.executed(60, 3)
    domains = drawn(sample, before, 3)
    domains.numbers = domains.numbers.clamp(0.0, 1.0)
    bounds, enough = guide(sample), torch.full_like(domains.bound, torch.inf)
    together = domains.some(torch.arange(len(domains)))
    start = bounds.quick(domains)
    found = bounds.climb(together, 20, (0.1, 0.2), 0.95, enough)
    assert bool((found >= start).all())
    assert bool((found > start).any())
    assert torch.allclose(bounds.quick(together), found, rtol=1e-5, atol=1e-6)
    for row in range(len(domains)):
        alone = domains.some(torch.tensor([row]))
        one = bounds.climb(alone, 20, (0.1, 0.2), 0.95, enough[:1])
        assert torch.allclose(one, found[row], rtol=1e-4, atol=1e-5)
