"""Branch and bound against a mixed-integer programme: decides, never falsely, within its budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from models.layers.kinds import Linear, ReLU
from models.network import Network
from tests.extent import examples
from tests.workers.verification.networks import Builder, dense_network
from workers.verification.attacks.replay import inside
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.clock import Clock
from workers.verification.complete import search
from workers.verification.complete.search import REFINED_SHARE
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.problem import Problem
from workers.verification.protocol import Budget, Verdict
from workers.verification.region import Region

CPU = torch.device("cpu")
#: HiGHS gives up on some programmes, with presolve and without.
SOLVE_ERROR = 4
BOUND = BOUNDS["branch-and-bound"]
#: Both go through a sample's domains.
COMPLETE = st.sampled_from(["branch-and-bound", "milp"])
#: Of the work for bounds, what boxes of domains may take beside it: as it is, and all of them.
SHARE = st.sampled_from([REFINED_SHARE, 1e9])


def tried(
    network: Network,
    x: Tensor,
    epsilon: float,
    norm: str = "linf",
    name: str = "branch-and-bound",
    **options: object,
) -> tuple[Verdict, Region, Tensor]:
    """x [batch, *shape]; options: of the budget."""
    region = Region(x, torch.full((len(x),), epsilon, dtype=torch.float64), norm, clip=True)
    with torch.no_grad():
        labels = network(x).argmax(1)
    budget = Budget(torch.ones(len(x), dtype=torch.float64), **options)  # type: ignore[arg-type]
    problem = Problem(CompiledNetwork.compile(network), True, CPU)
    return BOUNDS[name].attempt(problem, region, labels, budget), region, labels


def least_margin(network: Network, region: Region, label: int) -> float:
    """The least margin over the box of one sample, by HiGHS with a binary for every neuron; NaN
    where it gives up."""
    layers = [
        layer for node in network.nodes if isinstance(layer := network.layer(node.name), Linear)
    ]
    lower, upper = (end.flatten().double().numpy() for end in region.box(torch.float64))
    sizes = [len(lower)] + [3 * len(layer.weight) for layer in layers[:-1]]
    starts = np.cumsum([0, *sizes])
    width = int(starts[-1])
    low, high = np.full(width, -np.inf), np.full(width, np.inf)
    integral = np.zeros(width)
    low[: len(lower)], high[: len(lower)] = lower, upper
    rows: list[tuple[np.ndarray, float, float]] = []
    source, ends = slice(0, len(lower)), (lower, upper)
    for number, layer in enumerate(layers[:-1]):
        weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
        middle, half = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
        reach = np.abs(weight) @ half
        box = weight @ middle + bias - reach - 1e-6, weight @ middle + bias + reach + 1e-6
        out, start = len(weight), int(starts[number + 1])
        for i in range(out):
            z, a, d = start + i, start + out + i, start + 2 * out + i
            least, most = min(box[0][i], 0.0), max(box[1][i], 0.0)
            integral[d], low[d], high[d], low[a], high[a] = 1, 0.0, 1.0, 0.0, most
            held = np.zeros(width)
            held[source], held[z] = weight[i], -1.0
            rows.append((held, -bias[i], -bias[i]))
            # a >= z, a <= z - least (1 - d), a <= most d.
            for on_a, on_z, on_d, limit in (
                (-1.0, 1.0, 0.0, 0.0),
                (1.0, -1.0, -least, -least),
                (1.0, 0.0, -most, 0.0),
            ):
                held = np.zeros(width)
                held[a], held[z], held[d] = on_a, on_z, on_d
                rows.append((held, -np.inf, limit))
        source = slice(start + out, start + 2 * out)
        ends = box[0].clip(0.0), box[1].clip(0.0)
    last, found = layers[-1], np.inf
    table = LinearConstraint(
        np.array([row for row, _, _ in rows]),
        [floor for _, floor, _ in rows],
        [ceiling for _, _, ceiling in rows],
    )
    for other in range(len(last.weight)):
        if other == label:
            continue
        cost = np.zeros(width)
        cost[source] = (last.weight[label] - last.weight[other]).detach().double().numpy()
        shift = float((last.bias[label].double() - last.bias[other].double()).detach())
        for presolve in (True, False):
            answer = milp(
                cost,
                constraints=table,
                bounds=Bounds(low, high),
                integrality=integral,
                options={"presolve": presolve},
            )
            if answer.status != SOLVE_ERROR:
                break
        else:
            return np.nan
        assert answer.status == 0, answer.message
        found = min(found, float(answer.fun) + shift)
    return found


@given(
    seed=st.integers(0, 10**6),
    epsilon=st.sampled_from([0.05, 0.15, 0.3]),
    name=COMPLETE,
    share=SHARE,
)
@settings(max_examples=examples(8), deadline=None)
def test_it_decides_as_a_mixed_integer_programme_does(
    seed: int, epsilon: float, name: str, share: float
) -> None:
    network = dense_network([3, 8, 6, 3], seed)
    x = torch.rand(2, 3, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "REFINED_SHARE", share)
        verdict, region, labels = tried(network, x, epsilon, name=name)
    for row in range(2):
        exact = least_margin(network, region.part(slice(row, row + 1), CPU), int(labels[row]))
        if exact > 1e-3:
            assert bool(verdict.proved[row])
            assert float(verdict.least_margin[row]) <= exact + 1e-6
        elif exact < -1e-3:
            assert bool(verdict.falsified[row])
        assert not bool(verdict.proved[row] & verdict.falsified[row])


@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["l2", "linf"]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    name=COMPLETE,
    share=SHARE,
)
@settings(max_examples=examples(8), deadline=None)
def test_what_it_says_is_true_on_a_fine_grid(
    seed: int, norm: str, scale: float, name: str, share: float
) -> None:
    network = dense_network([2, 10, 8, 3], seed, scale=scale)
    x = torch.rand(2, 2, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "REFINED_SHARE", share)
        verdict, region, labels = tried(network, x, 0.2, norm, name, passes=20_000.0)
    side = torch.linspace(-0.2, 0.2, 201)
    grid = torch.cartesian_prod(side, side)
    for row in range(2):
        points = (x[row] + grid).clamp(0.0, 1.0)
        centre, reach = x[row].expand_as(points), region.epsilon[row].expand(len(points))
        points = points[inside(points, centre, reach, norm=norm, clip=True)]
        with torch.no_grad():
            right = bool((network(points).argmax(1) == labels[row]).all())
        assert right or not bool(verdict.proved[row])
        if verdict.falsified[row]:
            assert verdict.counterexample is not None
            point = verdict.counterexample[row : row + 1]
            with torch.no_grad():
                logits = network(point)[0]
            others = torch.cat([logits[: labels[row]], logits[labels[row] + 1 :]])
            assert float(others.max()) >= float(logits[labels[row]]) - 1e-5 * float(
                logits.abs().max()
            )
            assert bool(inside(point, x[row : row + 1], region.epsilon[:1], norm=norm, clip=True))


def hard() -> tuple[Network, Tensor, float]:
    """A sample that takes some hundred domains to prove."""
    network = dense_network([8, 20, 12, 4], 8)
    x = torch.from_numpy(np.random.default_rng(8).random((3, 8)).astype(np.float32))
    return network, x[1:2], 0.3


def test_work_and_time_end_a_search_undecided_and_say_how_far_it_got() -> None:
    network, x, epsilon = hard()
    whole = tried(network, x, epsilon)[0]
    assert bool(whole.proved)
    assert whole.open_domains is not None
    assert int(whole.open_domains) == 0
    least = []
    for share in (0.0, 0.3, 0.6):
        passes = BOUND.setup + share * (float(whole.spent) - BOUND.setup)  # type: ignore[attr-defined]
        part = tried(network, x, epsilon, passes=passes)[0]
        assert not bool(part.proved | part.falsified)
        assert part.open_domains is not None
        assert int(part.open_domains) > 0
        assert float(part.spent) <= max(passes, BOUND.setup) + 1000.0  # type: ignore[attr-defined]
        least.append(float(part.least_margin))
    assert least == sorted(least)
    assert least[-1] <= 0.0
    looks = iter(range(10**6))
    clock = Clock(now=lambda: float(next(looks)))
    timed = tried(network, x, epsilon, clock=clock, sample_time_s=200.0)[0]
    assert not bool(timed.proved | timed.falsified)
    plenty = tried(network, x, epsilon, clock=clock, sample_time_s=1e6, passes=0.0)[0]
    assert bool(plenty.proved)


def test_clipped_inputs_and_narrower_boxes_of_units_spare_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, x, epsilon = hard()
    spent = []
    for share, few in ((REFINED_SHARE, search.FEW_INPUTS), (REFINED_SHARE, 0), (0.0, 0)):
        monkeypatch.setattr(search, "REFINED_SHARE", share)
        monkeypatch.setattr(search, "FEW_INPUTS", few)
        verdict = tried(network, x, epsilon)[0]
        assert bool(verdict.proved)
        assert float(verdict.least_margin) > 0
        spent.append(float(verdict.spent) - BOUND.setup)  # type: ignore[attr-defined]
    assert spent[0] < spent[1] < spent[2]


def test_the_same_sample_gives_the_same_search() -> None:
    network, x, epsilon = hard()
    first, second = (tried(network, x, epsilon, passes=20_000.0)[0] for _ in range(2))
    assert float(first.spent) == float(second.spent)
    assert float(first.least_margin) == float(second.least_margin)
    assert first.open_domains is not None
    assert second.open_domains is not None
    assert int(first.open_domains) == int(second.open_domains)


@pytest.mark.parametrize("lead", [1e-6, 1e-2])
def test_a_lead_that_float32_may_lose_is_not_proved(lead: float) -> None:
    """relu(s) + relu(-s) >= |s| splits into two linear halves, whose margin is ``lead`` exactly."""
    b = Builder((2,), 0)
    b.add(
        Linear(
            torch.tensor([[1000.0, 1000.0], [-1000.0, -1000.0]]), torch.tensor([-1000.0, 1000.0])
        )
    )
    b.add(ReLU())
    b.add(Linear(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([lead, 0.0])))
    network = b.build()
    verdict, _, labels = tried(network, torch.tensor([[0.5, 0.5]]), 0.25)
    assert int(labels) == 0
    assert bool(verdict.proved) == (lead > 1e-3)
    assert not bool(verdict.falsified)
