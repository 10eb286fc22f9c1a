"""Zonotopes: every float32 evaluation lies inside, values share their terms, slopes are free."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.layers.activations import MaxMin
from models.layers.kinds import Add, LeakyReLU, Linear, ReLU
from models.network import Network
from tests.extent import examples
from tests.workers.verification.networks import (
    Builder,
    adversarial_float32,
    dense_network,
    random_network,
)
from tests.workers.verification.regions import points_of
from workers.verification.bounds.crown import cap_margins
from workers.verification.bounds.interval import interval_margins
from workers.verification.bounds.zonotope import zonotope_margins
from workers.verification.clock import Clock, OutOfTime
from workers.verification.forward.margins import certified
from workers.verification.forward.propagation import forward_step
from workers.verification.forward.zonotope_pass import ZonotopePass, zonotope_margins_at_head
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding

F32, F64 = torch.float32, torch.float64
DOUBLE = (Rounding.sound(F64), F64)
ROOM = 1000


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def reach(*epsilons: float) -> Tensor:
    return torch.tensor(epsilons, dtype=F64)


def gaps(logits: Tensor, labels: Tensor) -> Tensor:
    found = logits.gather(1, labels[:, None]) - logits
    return found.scatter(1, labels[:, None], torch.inf)


@given(
    dtype=st.sampled_from([F32, F64]),
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["l2", "linf"]),
    clip=st.booleans(),
    epsilon=st.sampled_from([1e-9, 1e-3, 0.05, 0.5]),
    scale=st.sampled_from([1.0, 1e-4, 1e4]),
)
@settings(max_examples=examples(2), deadline=None)
def test_margins_hold_for_every_float32_evaluation(
    dtype: torch.dtype, seed: int, norm: str, clip: bool, epsilon: float, scale: float
) -> None:
    network = random_network(seed, scale=scale)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 2, 8, 8, generator=generator)
    region = Region(x, reach(epsilon, 2 * epsilon, epsilon / 3), norm, clip)
    labels = torch.tensor([0, 1, 2])
    compiled = CompiledNetwork.compile(network)
    lowest = zonotope_margins(compiled, region, labels, Rounding.sound(dtype), dtype, iterations=2)
    for point in points_of(region, generator, 4):
        for value in (adversarial_float32(network, point, generator), network(point).double()):
            assert bool((gaps(value, labels) >= lowest).all())


def leaky(seed: int, slope: float = 0.0) -> Network:
    b = Builder((6,), seed)
    for width in (9, 8):
        b.linear(width)
        b.add(LeakyReLU(slope=slope) if slope else ReLU())
    b.linear(3)
    return b.build()


@given(
    dtype=st.sampled_from([F32, F64]),
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["l2", "linf"]),
    slope=st.sampled_from([0.0, 0.1]),
    room=st.sampled_from([0, 3, 5, ROOM]),
    size=st.sampled_from([1e-12, 0.05, 1.0]),
)
@settings(max_examples=examples(12), deadline=None)
def test_any_slopes_and_any_number_of_terms_hold_every_value(
    dtype: torch.dtype, seed: int, norm: str, slope: float, room: int, size: float
) -> None:
    compiled = CompiledNetwork.compile(leaky(seed, slope))
    generator = torch.Generator().manual_seed(seed)
    region = Region(torch.rand(2, 6, generator=generator), reach(size, 2 * size), norm, False)
    slopes = {
        index: torch.rand(2, *step.shape, generator=generator).to(dtype)
        for index, step in enumerate(compiled.steps)
    }
    # Half of them at the ends, where slopes learnt end.
    slopes = {index: ((2 * s - 0.5).clamp(0, 1)) for index, s in slopes.items()}
    done = ZonotopePass(compiled, region, Rounding.sound(dtype), dtype, room, slopes)
    _, state = done.run()
    labels = torch.tensor([0, 2])
    lowest = zonotope_margins_at_head(compiled.head, state, labels, done.rounding)
    assert all(int(t.used.sum(1).max()) <= room for t in done.terms.values())
    low, high = state.box(done.rounding)
    for point in points_of(region, generator, 20):
        values = [point]
        for step in compiled.steps:
            values.append(forward_step(step, [values[source] for source in step.sources]))
        for value, (lower, upper) in done.boxes.items():
            assert bool((values[value] >= lower).all() & (values[value] <= upper).all())
        assert bool((values[-1] >= low).all() & (values[-1] <= high).all())
        logits = values[-1].double() @ compiled.head.weight.T + compiled.head.bias
        assert bool((gaps(logits, labels) >= lowest).all())


def test_with_chords_one_hidden_layer_is_as_tight_as_cap() -> None:
    """The two are dual to each other (methods of the same relaxation)."""
    for seed in range(6):
        compiled = CompiledNetwork.compile(dense_network([5, 12, 4], seed))
        x = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed))
        region = Region(x, reach(0.3, 0.1, 0.02), "linf", True)
        labels = torch.tensor([0, 1, 2])
        ours = zonotope_margins(compiled, region, labels, *DOUBLE, iterations=0)
        theirs = cap_margins(compiled, region, labels, *DOUBLE)
        # What the boxes alone decide, CAP leaves to them.
        open_pairs = theirs < 0
        assert torch.allclose(ours[open_pairs], theirs[open_pairs], rtol=0, atol=1e-6)
        assert bool((ours >= theirs - 1e-6).all())


def test_no_margin_is_below_interval_bounds_and_learnt_slopes_prove_more() -> None:
    network = dense_network([6, 14, 14, 14, 3], 1)
    x = torch.rand(6, 6, generator=torch.Generator().manual_seed(1))
    case = (CompiledNetwork.compile(network), Region(x, reach(*[0.2] * 6), "linf", False))
    labels = network(x).argmax(1)
    boxes = interval_margins(*case, labels, *DOUBLE)
    plain = zonotope_margins(*case, labels, *DOUBLE, iterations=0)
    learnt = zonotope_margins(*case, labels, *DOUBLE, iterations=20)
    assert bool((plain >= boxes).all())
    assert bool((learnt >= plain).all())
    assert int(certified(learnt).sum()) >= int(certified(plain).sum()) + 2


def test_slopes_that_reach_no_margin_are_not_learnt() -> None:
    """A maximum begins anew from its box: what stands before it has no gradient."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(*shape, generator=generator) for shape in ((4, 3), (3, 4))]
    rows = [
        ("a", Linear(weights[0]), ("input",)),
        ("b", ReLU(), ("a",)),
        ("c", MaxMin(), ("b",)),
        ("d", Linear(weights[1]), ("c",)),
    ]
    network = Network((3,), rows).eval()
    x = torch.full((1, 3), 0.5)
    labels = network(x).argmax(1)
    compiled, region = CompiledNetwork.compile(network), Region(x, reach(0.3), "linf", False)
    first = zonotope_margins(compiled, region, labels, *DOUBLE, iterations=0)
    assert not bool(certified(first))
    assert torch.equal(zonotope_margins(compiled, region, labels, *DOUBLE), first)


def test_values_that_share_their_terms_cancel() -> None:
    """z and 1 - z add up to 1, whatever z is: boxes cannot know."""
    b = Builder((4,), 0)
    b.linear(6)
    first = b.last
    b.add(Linear(-torch.eye(6), torch.ones(6)))
    b.add(Add(), b.last, first)
    b.add(Linear(torch.tensor([[1.0] * 6, [0.9] * 6]), torch.zeros(2)))
    region = Region(torch.full((1, 4), 0.5), reach(0.5), "linf", True)
    compiled, label = CompiledNetwork.compile(b.build()), torch.tensor([0])
    assert float(zonotope_margins(compiled, region, label, *DOUBLE)[0, 1]) > 0.59
    assert float(interval_margins(compiled, region, label, *DOUBLE)[0, 1]) < 0


def test_over_a_ball_a_linear_network_has_its_exact_margin() -> None:
    network = dense_network([7, 3], 1)
    x = torch.rand(1, 7, generator=torch.Generator().manual_seed(1))
    compiled, label = CompiledNetwork.compile(network), torch.tensor([2])
    weight, bias = compiled.head.weight, compiled.head.bias
    rows = weight[2] - weight[:2]
    exact = rows @ x[0].double() + bias[2] - bias[:2] - 0.25 * rows.norm(dim=1)
    found = zonotope_margins(compiled, Region(x, reach(0.25), "l2", False), label, *DOUBLE)[0, :2]
    assert bool((found <= exact).all())
    assert torch.allclose(found, exact, rtol=0, atol=1e-5)


def test_a_grid_of_two_pixels_stays_above_the_margin_and_comes_near() -> None:
    line = torch.linspace(-1, 1, 81)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    for seed in range(6):
        network = dense_network([2, 10, 10, 3], seed)
        x = torch.rand(1, 2, generator=torch.Generator().manual_seed(seed))
        labels = network(x).argmax(1)
        region = Region(x, reach(0.02), "linf", False)
        found = zonotope_margins(CompiledNetwork.compile(network), region, labels, *DOUBLE)[0]
        inside = x + 0.0199999 * grid
        exact = gaps(network(inside).double(), labels.expand(len(inside))).amin(0)
        assert bool((found <= exact).all())
        others = torch.isfinite(exact)
        assert bool((found[others] >= exact[others] - 0.05).all())


def test_a_sample_alone_and_in_a_batch_has_the_same_margins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = CompiledNetwork.compile(dense_network([6, 20, 20, 3], 4))
    x = torch.rand(5, 6, generator=torch.Generator().manual_seed(4))
    region = Region(x, reach(0.3, 0.02, 0.1, 0.2, 0.05), "linf", True)
    labels = torch.tensor([0, 1, 2, 0, 1])
    together = zonotope_margins(compiled, region, labels, *DOUBLE)
    monkeypatch.setitem(zonotope_margins.__globals__["ROW_BYTES"], "cpu", 1)
    alone = zonotope_margins(compiled, region, labels, *DOUBLE)
    assert torch.allclose(together, alone, rtol=0, atol=1e-9)


def test_whenever_the_time_is_over_what_is_answered_is_sound() -> None:
    compiled = CompiledNetwork.compile(dense_network([4, 9, 9, 3], 2))
    region = Region(torch.full((1, 4), 0.5), reach(0.2), "linf", True)
    case = (compiled, region, torch.tensor([0]))
    full = zonotope_margins(*case, *DOUBLE)
    lowest = zonotope_margins(*case, *DOUBLE, iterations=0)
    answered = 0
    for allowed in range(0, 60, 3):
        ticks = count()
        clock = Clock(float(allowed), now=lambda ticks=ticks: float(next(ticks)))  # type: ignore[misc]
        try:
            found = zonotope_margins(*case, *DOUBLE, clock=clock)
        except OutOfTime:
            continue
        answered += 1
        assert bool(((found >= lowest) & (found <= full + 10)).all())
    assert answered > 3
