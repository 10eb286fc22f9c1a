"""A new bound is one file and one row: a complete method goes through the whole cascade."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from models.network import Network
from tests.workers.verification.bounds.brute_force import BruteForce, brute_force
from tests.workers.verification.networks import dense_network, random_network
from workers.verification.cascade.bound_table import BOUNDS, auto_bounds
from workers.verification.cascade.run import certify_samples
from workers.verification.cascade.shard import SoundnessViolation
from workers.verification.graph.compiled_network import CompiledNetwork, UnsupportedLayer
from workers.verification.problem import Problem
from workers.verification.protocol import Budget, Verdict
from workers.verification.region import Region
from workers.verification.results import AttackSettings, CertificationRequest, SampleResults

CPU = torch.device("cpu")
EPSILONS = ("1/100", "1/10", "2/5")
SAMPLES = 10


def evaluate(network: Network, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        return network(torch.from_numpy(x)).numpy()


def small_network(seed: int) -> Network:
    return dense_network([1, 8, 3], seed, scale=3.0)


def pixels(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((SAMPLES, 1)).astype(np.float32)


def certify(
    network: Network, x: NDArray[np.float32], *, given: dict[str, Any] | None = None, **options: Any
) -> SampleResults:
    """options: of the request; given: of ``certify_samples``."""
    options = {"norm": "linf", "method": "brute-force", "attack": None, "radius": False, **options}
    logits = evaluate(network, x)
    return certify_samples(
        network,
        x,
        logits.argmax(1),
        np.arange(len(x)),
        CertificationRequest(epsilons=tuple(map(Fraction, EPSILONS)), **options),
        deployed=lambda batch: evaluate(network, batch),
        deployed_logits=logits,
        device=CPU,
        **(given or {}),
    )


def assert_true(network: Network, x: NDArray[np.float32], found: SampleResults) -> None:
    """Certified: right on a fine grid of the region; falsified: wrong at the counterexample."""
    for position, epsilon in enumerate(float(Fraction(text)) for text in EPSILONS):
        grid = np.linspace(x[:, 0] - epsilon, x[:, 0] + epsilon, 401).clip(0, 1).astype(np.float32)
        named = evaluate(network, grid.reshape(-1, 1)).argmax(1).reshape(grid.shape)
        right = (named == found.label).all(0)
        assert not (found.certified[:, position] & ~right).any()
    for key, point in found.counterexamples.items():
        row, position = map(int, key.split(","))
        assert found.falsified[row, position]
        assert evaluate(network, point[None]).argmax() != found.label[row]
        assert abs(float(point[0]) - float(x[row, 0])) <= float(Fraction(EPSILONS[position]))


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> BruteForce:
    bound = brute_force()
    monkeypatch.setitem(BOUNDS, bound.name, bound)
    return bound


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**16), norm=st.sampled_from(["l2", "linf"]))
def test_a_complete_method_decides_everything_by_name(
    row: BruteForce, seed: int, norm: str
) -> None:
    network, x = small_network(seed), pixels(seed)
    found = certify(network, x, norm=norm)
    assert_true(network, x, found)
    assert not (found.certified & found.falsified).any()
    # Undecided: only where a margin comes nearer to zero than rounding.
    assert (found.certified | found.falsified).mean() > 0.8
    names = np.array(found.decided_by)
    assert (names[found.certified | found.falsified] == "brute-force").all()
    assert set(found.method) <= {"brute-force", "undecided"}


def test_auto_runs_it_where_its_cost_puts_it(
    row: BruteForce, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x = small_network(11), pixels(11)
    assert auto_bounds("linf")[-1] is row
    last = certify(network, x, method="auto")
    assert_true(network, x, last)
    deciders = {name for names in last.decided_by for name in names}
    assert {"lipschitz", "brute-force"} <= deciders
    # What an attack finds before the expensive bounds is the attack's.
    attacked = certify(network, x, method="auto", attack=AttackSettings(steps=10))
    assert (attacked.falsified == last.falsified).all()
    assert "attack" in {name for names in attacked.decided_by for name in names}
    monkeypatch.setitem(BOUNDS, row.name, replace(row, expected_passes=1.0))
    first = certify(network, x, method="auto")
    assert {name for names in first.decided_by for name in names} == {"brute-force"}
    assert (first.certified == last.certified).all()
    monkeypatch.setitem(BOUNDS, row.name, replace(row, auto_norms=()))
    assert "brute-force" not in certify(network, x, method="auto").method


def test_a_network_that_it_does_not_cover_is_refused_or_passed_over(row: BruteForce) -> None:
    network = random_network(0)
    x = np.random.default_rng(0).random((2, *network.input_shape)).astype(np.float32)
    with pytest.raises(UnsupportedLayer, match="'brute-force'"):
        certify(network, x)
    assert "brute-force" in certify(network, x, method="auto").notes["passed_over"]


def test_the_radius_by_it_is_the_distance_to_the_nearest_wrong_input(row: BruteForce) -> None:
    network, x = small_network(11), pixels(11)
    found = certify(network, x, radius=True)
    grid = np.linspace(0, 1, 100_001, dtype=np.float32)
    named = evaluate(network, grid[:, None]).argmax(1)
    for pixel, label, radius in zip(x[:, 0], found.label, found.radius, strict=True):
        wrong = np.abs(grid[named != label] - pixel)
        distance = float(wrong.min()) if wrong.size else np.inf
        if np.isinf(distance):
            assert np.isinf(radius)
        else:
            assert 0.99 * distance - 2e-5 <= radius <= distance + 2e-5
    assert_true(network, x, found)


def test_what_it_keeps_for_a_sample_is_there_at_the_next_epsilon(
    row: BruteForce, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    @dataclass(frozen=True, kw_only=True)
    class Watched(BruteForce):
        def attempt(
            self, problem: Problem, region: Region, labels: Tensor, budget: Budget
        ) -> Verdict:
            seen.extend(state.get("asked", 0) for state in budget.states)
            return super().attempt(problem, region, labels, budget)

    fields = {name: getattr(row, name) for name in row.__dataclass_fields__}
    monkeypatch.setitem(BOUNDS, row.name, Watched(**fields))
    found = certify(small_network(11), pixels(11))
    assert found.certified[:, :2].all(1).any()
    assert seen.count(0) == SAMPLES
    assert {1, 2} <= set(seen)


@dataclass(frozen=True, kw_only=True)
class Claimed(BruteForce):
    """Says that the sample itself, or the largest step aside, is a counterexample."""

    far: bool = False
    prove: bool = False

    def attempt(self, problem: Problem, region: Region, labels: Tensor, budget: Budget) -> Verdict:
        verdict = super().attempt(problem, region, labels, budget)
        everything = torch.ones_like(verdict.falsified)
        point = verdict.counterexample
        if not self.prove:
            point = region.x + 0.9 if self.far else region.x
        return replace(
            verdict,
            proved=everything if self.prove else ~everything,
            falsified=verdict.falsified if self.prove else everything,
            counterexample=point,
        )


def claimed(**options: bool) -> Claimed:
    row = brute_force()
    return Claimed(**{name: getattr(row, name) for name in row.__dataclass_fields__}, **options)


@pytest.mark.parametrize("far", [False, True])
def test_a_counterexample_counts_only_as_deployed_and_in_the_region(
    far: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BOUNDS, "brute-force", claimed(far=far))
    found = certify(small_network(11), pixels(11), clip=False)
    assert not found.falsified.any()
    assert found.counterexamples == {}
    assert set(found.method) == {"undecided"}


def test_a_bound_that_proves_what_it_falsifies_fails_loudly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BOUNDS, "brute-force", claimed(prove=True))
    with pytest.raises(SoundnessViolation, match="'brute-force'"):
        certify(small_network(11), pixels(11))
    found = certify(small_network(11), pixels(11), soundness="estimate")
    assert found.notes["overruled_estimates"] > 0
    assert found.falsified.any()
    assert not (found.certified & found.falsified).any()


def test_work_that_an_attempt_has_not_spent_is_given_back(row: BruteForce) -> None:
    network, x = small_network(11), pixels(11)
    # Paid in advance: 64 passes each; at most 10 points are looked at.
    plenty, scarce = (
        certify(network, x, given={"work": work}) for work in (1e9, row.max_passes + 20.0)
    )
    assert not scarce.notes["work_spent"]
    assert scarce.decided_by == plenty.decided_by
    none = certify(network, x, given={"work": row.max_passes - 1.0, "memory": 1e9}, norm="l2")
    assert none.notes["work_spent"]


def test_running_out_of_passes_leaves_a_sample_undecided(
    row: BruteForce, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x = small_network(11), pixels(11)
    monkeypatch.setitem(BOUNDS, row.name, replace(row, most_points=1.0))
    found = certify(network, x)
    assert not found.certified.any()
    assert set(found.method) <= {"undecided", "brute-force"}
    assert "undecided" in found.method


def test_running_out_of_time_leaves_what_is_not_decided_undecided(row: BruteForce) -> None:
    looks = iter(range(10**6))
    found = certify(
        small_network(11), pixels(11), given={"deadline": 30, "now": lambda: float(next(looks))}
    )
    assert found.notes["budget_spent"]
    assert {"undecided", "brute-force"} <= {name for names in found.decided_by for name in names}


def test_what_does_not_fit_into_memory_is_given_up(row: BruteForce) -> None:
    found = certify(small_network(11), pixels(11), given={"memory": 10.0})
    assert found.notes["gave_up"] == {"brute-force": SAMPLES}
    assert set(found.method) == {"undecided"}


@pytest.mark.parametrize("name", BOUNDS)
def test_every_bound_keeps_the_protocol(name: str) -> None:
    network = dense_network([4, 8, 3], 1)
    compiled = CompiledNetwork.compile(network)
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = network(x).double()
    labels = logits.argmax(1)
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    margin = logits.gather(1, labels[:, None])[:, 0] - others
    epsilon = torch.full((6,), 1e-3, dtype=torch.float64)
    bound, problem = BOUNDS[name], Problem(compiled, True, CPU)
    told: dict[int, bool] = {}
    budget = Budget(
        margin,
        report=lambda rows, proved: told.update(zip(rows.tolist(), proved.tolist(), strict=True)),
    )
    region = Region(x, epsilon, "linf", True)
    verdict = bound.attempt(problem, region, labels, budget)
    assert verdict.proved.any()
    assert verdict.proved.tolist() == [told[row] for row in range(6)]
    assert not verdict.falsified.any()
    assert (verdict.spent <= bound.max_passes).all()
    assert bound.memory(compiled) > 0
    # Alone as in the batch.
    for row in range(6):
        one = region.part(slice(row, row + 1), CPU)
        alone = bound.attempt(problem, one, labels[row : row + 1], Budget(margin[row : row + 1]))
        assert bool(alone.proved) == bool(verdict.proved[row])
