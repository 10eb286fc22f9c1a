"""``milp``: refined boxes hold every execution, and nothing that a solver says proves anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.extent import examples
from tests.workers.verification.complete.samples import Sample, sample_of
from tests.workers.verification.networks import dense_network
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.complete import milp
from workers.verification.complete.domain_bounds import DomainBounds
from workers.verification.complete.linear_programme import Hints, LinearProgramme
from workers.verification.complete.refined_boxes import refined
from workers.verification.complete.search import roots
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.protocol import Budget, Verdict
from workers.verification.region import Region
from workers.verification.rounding import Rounding

CPU = torch.device("cpu")
F64 = torch.float64
#: What a broken solver may answer.
WRONG = [np.nan, np.inf, -np.inf, -1e30, 1e30, 1e-320, 0.5]


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def bounds(sample: Sample) -> tuple[DomainBounds, DomainBounds]:
    return (
        DomainBounds(sample.condensed, sample.region, Rounding.ignored(), torch.float32),
        DomainBounds(sample.condensed, sample.region, Rounding.sound(F64), F64),
    )


def attempt(seed: int, epsilon: float, **options: Any) -> tuple[Verdict, torch.Tensor]:
    """(verdict, margins at many points of the region) of three samples of a network that takes
    some hundred domains."""
    network = dense_network([8, 20, 12, 4], seed)
    x = torch.from_numpy(np.random.default_rng(seed).random((3, 8)).astype(np.float32))
    region = Region(x, torch.full((3,), epsilon, dtype=F64), "linf", True)
    labels = network(x).argmax(1)
    problem = Problem(CompiledNetwork.compile(network), True, CPU)
    verdict = BOUNDS["milp"].attempt(
        problem, region, labels, Budget(torch.ones(3, dtype=F64), **options)
    )
    low, high = (end.float() for end in region.box(F64))
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(3, 4000, 8, generator=generator).round()
    logits = network((low[:, None] + corners * (high - low)[:, None]).flatten(0, 1)).double()
    own = logits.gather(1, labels.repeat_interleave(4000)[:, None])
    others = logits.scatter(1, labels.repeat_interleave(4000)[:, None], -torch.inf).amax(1)
    return verdict, (own[:, 0] - others).reshape(3, 4000)


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-5, 1.0, 1e5]), l2=st.booleans())
@settings(max_examples=examples(6), deadline=None)
def test_refined_boxes_are_narrower_and_hold_every_execution(
    seed: int, scale: float, l2: bool
) -> None:
    x = torch.rand(1, 4, generator=torch.Generator().manual_seed(seed))
    network = dense_network([4, 7, 6, 5, 3], seed, scale=scale)
    sample = sample_of(network, x, 0.2, "l2" if l2 else "linf")
    guide, proof = bounds(sample)
    old = sample.condensed
    new = refined(guide, proof)[0]
    values, before, margins = sample.executed(60, seed)
    after = values[:, old.inputs :]
    assert bool(((new.lower <= before) & (before <= new.upper)).all())
    assert bool(((new.lower >= old.lower) & (new.upper <= old.upper)).all())
    assert bool((after.abs() <= new.reach[new.inputs :]).all())
    lines = new.lines
    assert bool((lines.lower_slope * before + lines.lower_intercept <= after + 1e-300).all())
    assert bool((lines.upper_slope * before + lines.upper_intercept >= after - 1e-300).all())
    narrow = DomainBounds(new, sample.region, Rounding.sound(F64), F64)
    found = narrow.proved(roots(new, torch.float32))
    assert bool((found <= margins.amin(0)).all())


def test_refining_keeps_to_the_work_it_is_given() -> None:
    sample = sample_of(dense_network([6, 9, 9, 9, 3], 2), torch.full((1, 6), 0.5), 0.3)
    guide, proof = bounds(sample)
    whole, rows = refined(guide, proof)
    assert rows > 0
    same, nothing = refined(guide, proof, 0.0)
    assert nothing == 0
    assert torch.equal(same.lower, sample.condensed.lower)
    part, some = refined(guide, proof, rows / 2)
    assert 0 < some <= rows / 2
    widths = [float((net.upper - net.lower).sum()) for net in (whole, part, same)]
    assert widths[0] < widths[1] < widths[2]


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_solver_that_lies_proves_nothing_false(
    wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Duals and points of every kind, for every domain; what is proved is true at every corner."""
    draw = np.random.default_rng(wrong)
    asked = [0]

    def lying(self: LinearProgramme, domains: Any, clock: Clock = UNLIMITED) -> Hints:
        asked[0] += len(domains)
        numbers = torch.from_numpy(draw.choice(WRONG, size=tuple(domains.numbers.shape)))
        if wrong:
            numbers = torch.from_numpy(np.exp(draw.normal(0, 3, size=numbers.shape)))
        points = torch.from_numpy(draw.choice(WRONG, size=(len(domains), self.inputs)))
        found = torch.ones(len(domains), dtype=torch.bool)
        return Hints(numbers.to(domains.numbers), points.float(), found, 1.0)

    monkeypatch.setattr(LinearProgramme, "solved", lying)
    monkeypatch.setattr(milp, "REFINED_AT", 1)
    for epsilon in (0.3, 0.45):
        verdict, margins = attempt(8, epsilon, passes=60_000.0)
        worst = margins.amin(1)
        assert bool((~verdict.proved | (worst > 0)).all())
        assert bool((verdict.least_margin[verdict.proved] <= worst[verdict.proved]).all())
        for row in verdict.falsified.nonzero().flatten().tolist():
            assert verdict.counterexample is not None
            assert bool(torch.isfinite(verdict.counterexample[row]).all())
    assert asked[0] > 0


def test_it_decides_over_refined_boxes_and_says_how_far_it_got(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(milp, "REFINED_AT", 1)
    verdict, margins = attempt(8, 0.3)
    assert bool((verdict.proved | verdict.falsified).all())
    assert bool((~verdict.proved | (margins.amin(1) > 0)).all())
    setup = BOUNDS["milp"].setup  # type: ignore[attr-defined]
    slow = int(verdict.spent.argmax())
    assert float(verdict.spent[slow]) > setup
    part, _ = attempt(8, 0.3, passes=setup + 0.2 * (float(verdict.spent[slow]) - setup))
    assert not bool(part.proved[slow] | part.falsified[slow])
    assert part.open_domains is not None
    assert int(part.open_domains[slow]) > 0
    assert float(part.spent[slow]) <= float(verdict.spent[slow])


def test_a_domain_without_points_and_a_programme_beyond_a_solver_give_no_hints() -> None:
    sample = sample_of(dense_network([4, 7, 6, 3], 5), torch.full((1, 4), 0.5), 0.4)
    condensed = sample.condensed
    _, before, _ = sample.executed(400, 5)
    programme = LinearProgramme.of(condensed, sample.region)
    assert programme is not None
    domains = roots(condensed, torch.float32)
    plain = programme.solved(domains)
    assert bool(plain.found.all())
    assert plain.work > 0
    low, high = (end.flatten().float() for end in sample.region.box(F64))
    assert bool(((plain.points >= low) & (plain.points <= high)).all())
    # Every pattern of sides of the first block: some have no point.
    first = condensed.blocks[0].stop
    patterns = torch.cartesian_prod(*[torch.tensor([-1, 1], dtype=torch.int8)] * first)
    patterns = patterns.reshape(-1, first)
    many = domains.some(torch.zeros(len(patterns), dtype=torch.int64))
    many.sides[:, :first] = patterns
    hints = programme.solved(many)
    met = ((patterns[:, None] * before[None, :, :first]) >= 0).all(2).any(1)
    assert bool(hints.found[met].all())
    assert not bool(hints.found.all())
    assert torch.equal(hints.numbers[~hints.found], many.numbers[~hints.found])
    proof, again = bounds(sample)[1], domains.some(torch.arange(len(domains)))
    domains.numbers, again.numbers = plain.numbers, programme.solved(domains).numbers
    assert torch.allclose(proof.proved(domains), proof.proved(again), atol=1e-4)
    huge = condensed.units.weight.clone()
    huge[0, 0] = torch.inf
    condensed.units.weight.copy_(huge)
    assert LinearProgramme.of(condensed, sample.region) is None
