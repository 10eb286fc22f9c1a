"""The search of a radius: what it returns was proved, whatever margins say, by few tries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.extent import examples
from tests.workers.verification.certification import certify
from tests.workers.verification.networks import dense_network
from workers.verification.bounds.arithmetics import MarginsBound, RadiusBound
from workers.verification.cascade.attack_stage import attack_passes
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.cascade.radius import Lost, search_radius
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.protocol import Bound, Budget
from workers.verification.region import Region
from workers.verification.results import AttackSettings

CAP = 28.0


@dataclass
class Prover:
    """Proves up to ``radii`` [batch]; its margins are whatever ``margin`` (row, epsilon) says."""

    radii: Tensor
    margin: Callable[[int, float], float]
    tried: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tried = [[] for _ in self.radii]

    def __call__(self, rows: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
        for row, value in zip(rows.tolist(), epsilon.tolist(), strict=True):
            self.tried[row].append(value)
        pairs = zip(rows.tolist(), epsilon.tolist(), strict=True)
        told = torch.tensor([self.margin(*pair) for pair in pairs], dtype=torch.float64)
        return epsilon <= self.radii[rows], told


def of(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def searched(prover: Prover, low: Tensor, high: Tensor, **options: object) -> Tensor:
    options.setdefault("width", 2.0**-7)
    start = torch.full_like(low, 0.3)
    return search_radius(prover, low, high, start, CAP, **options)  # type: ignore[arg-type]


def test_next_to_nothing_proved_is_no_place_to_climb_from() -> None:
    """Steps in proportion to it were 2,000 tries, and no radius at the end of them."""
    prover = Prover(of(1.0), lambda row, epsilon: 0.0)
    found = searched(prover, of(2e-222), of(math.inf), width=0.0625)
    assert float(found) >= 1 - 0.0625
    assert len(prover.tried[0]) < 40


NONSENSE = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0, -1e300, 1e300, 0.5, -3.0])


@given(
    radii=st.lists(st.floats(1e-6, 40.0), min_size=1, max_size=6),
    told=st.lists(NONSENSE, min_size=1, max_size=9),
    shares=st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6),
    width=st.sampled_from([2.0**-4, 2.0**-10]),
    failed=st.booleans(),
)
@settings(max_examples=examples(40), deadline=None)
def test_the_radius_is_a_proved_one_and_its_bracket_narrow_whatever_margins_are_told(
    radii: list[float], told: list[float], shares: list[float], width: float, failed: bool
) -> None:
    true = of(*radii)
    low = true * of(*shares[: len(radii)]).where(true > 1e-3, of(0.0))
    high = (true * 1.9) if failed else torch.full_like(true, torch.inf)
    prover = Prover(true, lambda row, epsilon: told[len(prover.tried[row]) % len(told)])
    found = searched(prover, low, high, width=width)
    for row, radius in enumerate(found.tolist()):
        proved = [e for e in prover.tried[row] if e <= radii[row]]
        best = max([*proved, float(low[row])])
        assert radius == (best if best < CAP else math.inf)
        assert all(float(low[row]) < e < float(high[row]) for e in prover.tried[row])
        assert math.isinf(radius) or radius >= min(radii[row], CAP) * (1 - width) or radius == 0.0


@given(
    radius=st.floats(1e-3, 10.0),
    bend=st.floats(0.0, 1.0),
    beyond=st.floats(1.05, 20.0),
    hinted=st.booleans(),
)
@settings(max_examples=examples(40), deadline=None)
def test_margins_lead_to_the_radius_in_few_tries(
    radius: float, bend: float, beyond: float, hinted: bool
) -> None:
    def margin(row: int, epsilon: float) -> float:
        share = epsilon / radius
        return 1.0 - (1.0 - bend) * share - bend * share * share

    prover = Prover(of(radius), margin)
    high = radius * beyond
    lost = Lost(1)
    if hinted:
        lost.learn(torch.tensor([0]), of(high), of(margin(0, high)))
    found = searched(prover, of(0.0), of(high), lost=lost, tries=5)
    assert radius * (1 - 2.0**-6) <= float(found[0]) <= radius


@given(radii=st.lists(st.floats(1e-3, 10.0), min_size=2, max_size=6))
@settings(max_examples=examples(20), deadline=None)
def test_the_epsilons_tried_do_not_depend_on_the_batch(radii: list[float]) -> None:
    def margin(row: int, epsilon: float) -> float:
        return 1.0 - (epsilon / radii[row]) ** 2

    whole = Prover(of(*radii), margin)
    low, high = torch.zeros(len(radii), dtype=torch.float64), of(*[math.inf] * len(radii))
    searched(whole, low, high)
    for row, radius in enumerate(radii):
        alone = Prover(of(radius), lambda _, epsilon, row=row: margin(row, epsilon))  # type: ignore[misc]
        searched(alone, low[:1], high[:1])
        assert alone.tried[0] == whole.tried[row]
        # Short numbers: the last bits of a margin seldom matter.
        assert all(math.ldexp(math.frexp(e)[0], 10).is_integer() for e in alone.tried[0][1:])


def test_no_more_tries_are_made_than_are_allowed() -> None:
    prover = Prover(of(0.7, 0.7), lambda row, epsilon: math.nan)
    first = torch.tensor([True, False])
    searched(prover, of(0.0, 0.0), of(1.0, 1.0), tries=3, allowed=lambda rows: first[rows])
    assert [len(tried) for tried in prover.tried] == [3, 0]


def test_what_a_failed_try_has_proved_is_a_lower_end() -> None:
    prover = Prover(of(0.7), lambda row, epsilon: math.nan)
    found = searched(prover, of(0.0), of(1.0), tries=1, known=lambda rows: of(0.1))
    assert float(found[0]) == max(0.1, *(e for e in prover.tried[0] if e <= 0.7), 0.0)


def test_no_try_is_made_that_promises_little() -> None:
    prover = Prover(of(0.7, 0.7), lambda row, epsilon: math.nan)
    lost = Lost(2)
    lost.learn(torch.tensor([0, 1]), of(0.6, 0.6), of(0.05, 0.7))
    searched(prover, of(0.6, 0.6), of(math.inf, math.inf), lost=lost, gain=0.1, tries=1)
    assert [len(tried) for tried in prover.tried] == [0, 1]


@pytest.mark.parametrize("attack", [None, AttackSettings(steps=5)])
@pytest.mark.parametrize(
    ("norm", "name", "largest_epsilon"), [("l2", "crown-ball", "3/10"), ("linf", "crown", "1/5")]
)
def test_the_search_costs_no_more_than_the_verdicts(
    norm: str,
    name: str,
    largest_epsilon: str,
    attack: AttackSettings | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor are cheap bounds searched at epsilons below those that this one has proved."""
    network = dense_network([8, 20, 12, 4], 8)
    x = np.random.default_rng(8).random((8, 8)).astype(np.float32)
    spent: dict[bool, list[float]] = {True: [0.0] * len(x), False: [0.0] * len(x)}
    tries, largest = [0] * len(x), [0.0] * len(x)
    cheap: list[tuple[int, float]] = []

    def counted(kind: type[Bound]) -> None:
        attempt = kind.attempt

        def counting(self, problem, region, labels, budget):  # type: ignore[no-untyped-def]
            verdict = attempt(self, problem, region, labels, budget)
            for place, image in enumerate(region.x):
                row = int(np.abs(x - image.numpy()).max(1).argmin())
                epsilon, passes = float(region.epsilon[place]), float(verdict.spent[place])
                spent[budget.tightest][row] += passes
                if budget.tightest and self.max_passes >= BOUNDS[name].max_passes:
                    tries[row] += 1
                    largest[row] = max(largest[row], passes)
                elif budget.tightest:
                    cheap.append((row, epsilon))
            return verdict

        monkeypatch.setattr(kind, "attempt", counting)

    for kind in {type(bound) for bound in BOUNDS.values() if norm in bound.auto_norms}:
        if not issubclass(kind, RadiusBound):
            counted(kind)
    asked = ("1/20", largest_epsilon)
    found = certify(network, x, asked, norm=norm, attack=attack)
    assert sum(tries) > 0
    assert any(by == name for by in found.method)
    # A try may cost more than is expected; tries of cheap bounds and of the attack are on top.
    attacked = 0.0 if attack is None else 8 * attack_passes(attack) * 2
    allowed = sum(spent[False]) + len(x) * (50 + attacked) + max(largest)
    assert sum(spent[True]) <= allowed
    without = certify(network, x, asked, norm=norm, attack=attack, radius=False)
    assert (found.certified == without.certified).all()
    largest_asked = np.where(without.certified, [0.05, float(Fraction(largest_epsilon))], 0.0).max(
        1
    )
    assert (found.radius >= largest_asked).all()
    assert not [r for r, e in cheap if found.method[r] == name and e <= largest_asked[r]]


@pytest.mark.parametrize("name", ["crown", "cap", "alpha-crown", "alpha-crown-intermediate"])
def test_a_try_that_fails_by_more_than_rounding_is_one_pass_in_float32(name: str) -> None:
    bound, kinds = BOUNDS[name], []
    assert isinstance(bound, MarginsBound)

    def counted(*arguments: Any, **options: Any) -> Tensor:
        kinds.append(arguments[4])
        return bound.margins(*arguments, **options)

    network = dense_network([8, 20, 12, 4], 8)
    x = torch.from_numpy(np.random.default_rng(8).random((3, 8)).astype(np.float32))
    logits = network(x).detach().double()
    top = logits.topk(2, 1).values
    problem = Problem(CompiledNetwork.compile(network), True, torch.device("cpu"))
    for epsilon, proved in ((5.0, False), (1e-4, True)):
        region = Region(x, torch.full((3,), epsilon, dtype=torch.float64), "linf", True)
        budget = Budget(top[:, 0] - top[:, 1], tightest=True)
        verdict = replace(bound, margins=counted).attempt(problem, region, logits.argmax(1), budget)
        assert verdict.proved.tolist() == [proved] * 3
    assert kinds == [torch.float32] * 2
