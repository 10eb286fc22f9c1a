"""The bounds that training differentiates: above every point tried, and with the right gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.architectures.published import build
from models.layers.activations import ReLUTheta
from models.layers.kinds import Layer, ReLU
from models.network import Network
from tests.extent import part
from tests.workers.training.bounds.graphs import CONFIG, generator, graph_of
from workers.training.bounds.ball_and_box import Intersection
from workers.training.bounds.last_layer import ball_logits, worst_logits
from workers.training.bounds.local_norms import clamp_slopes
from workers.training.config import TrainingConfig
from workers.training.objectives import OBJECTIVES, ScheduledWeights
from workers.training.objectives.bounded import (
    Bound,
    ball_and_box,
    global_ball,
    local_ball_and_box,
    whole_network,
)
from workers.verification.enclosure import Enclosure
from workers.verification.forward.box_ball import ball_box_maximum
from workers.verification.layers.registry import anchored_slopes

ACTIVATIONS = ["relu", "relu-theta", "maxmin", "clamped-maxmin"]


def small(activation: str, seed: int = 0) -> Network:
    act = {
        "relu": [{"kind": "relu"}],
        "relu-theta": [{"kind": "relu-theta", "value": 0.3}],
        "maxmin": [{"kind": "maxmin"}],
        "clamped-maxmin": [
            {"kind": "maxmin"},
            {"kind": "at-most", "half": "first", "value": 0.2},
            {"kind": "at-least", "half": "second", "value": -0.1},
        ],
    }[activation]
    rows = [{"kind": "conv2d", "out": 4, "kernel": 3, "stride": 2, "padding": 1}, *act]
    rows += [{"kind": "flatten"}, {"kind": "linear", "out": 12}, *act]
    rows += [{"kind": "linear", "out": 4}]
    network = build({"input": [1, 6, 6], "layers": rows}, generator=generator(seed))
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "bound",
    [global_ball, whole_network, ball_and_box, local_ball_and_box],
    ids=lambda b: b.__name__,
)
@torch.no_grad()
def test_no_point_of_the_ball_is_beyond_the_worst_logits(bound: Bound, activation: str) -> None:
    network = small(activation)
    graph = graph_of(network)
    x = torch.rand(16, 1, 6, 6, generator=generator(1))
    y = torch.arange(16) % 4
    epsilon = 0.3
    found = bound(graph, x, y, epsilon, CONFIG)
    assert torch.allclose(found.logits, network(x), atol=1e-5)
    reach = (found.worst - found.worst.gather(1, y[:, None])).to(torch.float64)
    for seed in range(30):
        step = torch.randn(x.shape, generator=generator(seed))
        step = step / step.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) * epsilon
        logits = network((x + step).clamp(0, 1))
        gaps = (logits - logits.gather(1, y[:, None])).to(torch.float64)
        # Local norms are estimates after one step: a thousandth of room.
        assert bool((gaps <= reach + 1e-3).all())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_each_bound_is_at_least_as_tight_as_the_one_it_refines(activation: str) -> None:
    graph = graph_of(small(activation))
    x, y = torch.rand(16, 1, 6, 6, generator=generator(1)), torch.arange(16) % 4
    for epsilon in (0.05, 0.5, 5.0):
        whole, ball, box, local = (
            bound(graph, x, y, epsilon, CONFIG).worst
            for bound in (whole_network, global_ball, ball_and_box, local_ball_and_box)
        )
        assert bool((ball <= whole + 1e-4 * (1 + whole.abs())).all())
        assert bool((box <= ball + 1e-4 * (1 + ball.abs())).all())
        assert bool((local <= box + 1e-4 * (1 + box.abs())).all())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(2, 5), st.integers(0, 999), st.integers(1, 12))
@torch.no_grad()
def test_the_last_layer_is_the_exact_maximum_or_above_it(
    features: int, classes: int, seed: int, rounds: int
) -> None:
    rng = generator(seed)
    batch = 5
    weight = torch.randn(classes, features, generator=rng)
    centre = torch.randn(batch, features, generator=rng)
    width = torch.rand(2, batch, features, generator=rng)
    # Some coordinates cannot move at all (dead neurons).
    width = width * (torch.rand(2, batch, features, generator=rng) > 0.3)
    radius = torch.rand(batch, generator=rng).to(torch.float64) * 2
    valid = torch.ones(batch, dtype=torch.bool)
    state = Enclosure(centre, radius, centre - width[0], centre + width[1], valid)
    labels = torch.randint(0, classes, (batch,), generator=rng)
    logits = centre @ weight.T
    worst = worst_logits(logits, weight, state, labels, rounds)
    for j in range(classes):
        w = (weight[j] - weight[labels]).to(torch.float64)
        low, high = -width[0].to(torch.float64), width[1].to(torch.float64)
        exact = ball_box_maximum(w, low, high, radius)
        shift = (worst[:, j] - logits[:, j]).to(torch.float64)
        assert bool((shift[labels == j].abs() < 1e-6).all())
        others = labels != j
        assert bool((shift >= exact - 1e-4 * (1 + exact.abs()))[others].all())
        if rounds >= 10:
            assert bool((shift <= exact + 1e-3 * (1 + exact.abs()))[others].all())


def test_gradients_of_the_last_layer_are_those_of_the_maximum() -> None:
    rng = generator(5)
    weight = torch.randn(3, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    centre = torch.zeros(2, 6, dtype=torch.float64)
    low = (-torch.rand(2, 6, generator=rng, dtype=torch.float64)).requires_grad_(True)
    high = torch.rand(2, 6, generator=rng, dtype=torch.float64).requires_grad_(True)
    radius = torch.tensor([0.7, 0.9], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2])
    valid = torch.ones(2, dtype=torch.bool)

    def value(w: Tensor, l: Tensor, h: Tensor, r: Tensor) -> Tensor:  # noqa: E741
        state = Enclosure(centre, r, l, h, valid)
        return worst_logits(centre @ w.T, w, state, labels, 40)

    assert torch.autograd.gradcheck(value, (weight, low, high, radius), atol=1e-4, rtol=1e-3)


def test_pairs_of_the_ball_are_the_norms_of_differences() -> None:
    rng = generator(1)
    weight, logits = torch.randn(5, 7, generator=rng), torch.randn(4, 5, generator=rng)
    reference = torch.tensor([0, 3, 3, 4])
    found = ball_logits(logits, weight, torch.tensor(0.5), reference)
    for row in range(4):
        for j in range(5):
            norm = float((weight[j] - weight[reference[row]]).norm())
            expected = float(logits[row, j]) + 0.5 * norm
            assert float(found[row, j]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("method", [m for m, row in OBJECTIVES.items() if row.any_network])
def test_every_method_has_a_finite_loss_with_gradients(method: str) -> None:
    network = small("clamped-maxmin")
    graph = graph_of(network, steps=1)
    x, y = torch.rand(8, 1, 6, 6, generator=generator(1)), torch.arange(8) % 4
    config = TrainingConfig(method=method, architecture="mnist-small", epsilon=0.3, sparsity=0.01)
    loss, found = OBJECTIVES[method].loss(graph, x, y, ScheduledWeights.of(0.3, 0.5, 1.0), config)
    loss.backward()
    gradients = [p.grad for p in network.parameters()]
    assert math.isfinite(loss.item())
    assert found.logits.shape == found.worst.shape == (8, 4)
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)


def test_trades_with_weight_one_is_the_plain_loss() -> None:
    """CE(f, y) + KL(softmax f || softmax [f, bottom]) = CE([f, bottom], y)."""
    graph = graph_of(small("maxmin"))
    x, y = torch.rand(8, 1, 6, 6, generator=generator(1)), torch.arange(8) % 4
    at = ScheduledWeights.of(0.3, 0.0, 1.0)
    plain, _ = OBJECTIVES["gloro"].loss(graph, x, y, at, CONFIG)
    trades, _ = OBJECTIVES["gloro-trades"].loss(graph, x, y, at, CONFIG)
    assert plain.item() == pytest.approx(trades.item(), rel=1e-5)


def test_emma_asks_of_each_class_what_it_can_bear() -> None:
    """Where no class is robust at all, e_j is the least share; where all are, it is 1."""
    graph = graph_of(small("maxmin"))
    x = torch.rand(8, 1, 6, 6, generator=generator(1))
    config = TrainingConfig(
        method="emma", architecture="mnist-small", epsilon=0.3, least_share=0.25
    )
    with torch.no_grad():
        right, wrong = graph.network(x).argmax(1), graph.network(x).argmin(1)
        for y, epsilon, share in ((right, 1e-6, 1.0), (wrong, 10.0, 0.25)):
            at = ScheduledWeights.of(epsilon, 0.0, 1.0)
            loss, found = OBJECTIVES["emma"].loss(graph, x, y, at, config)
            asked = found.logits + share * (found.worst - found.logits)
            assert loss.item() == pytest.approx(F.cross_entropy(asked, y).item(), rel=1e-4)


def test_without_an_epsilon_local_lip_g_is_plain_training() -> None:
    """The published warm-up; GloRo's further class would double the largest wrong logit."""
    graph = graph_of(small("relu-theta"))
    x, y = torch.rand(8, 1, 6, 6, generator=generator(1)), torch.arange(8) % 4
    at = ScheduledWeights.of(0.0, 1.0, 1.0)
    loss, found = OBJECTIVES["local-lip-g"].loss(graph, x, y, at, CONFIG)
    assert loss.item() == pytest.approx(F.cross_entropy(found.logits, y).item())


#: Every loss with both activations; the slice has each loss with one, BCP with both.
LOSSES = [
    (method, activation)
    for method in ("bcp", "standard", "lmt", "gloro", "gloro-trades")
    for activation in ("relu-theta", "clamped-maxmin")
]


@pytest.mark.parametrize(("method", "activation"), part(LOSSES, 0, 1, 2, 5, 6, 9))
def test_gradients_are_those_of_the_loss(method: str, activation: str) -> None:
    """Along random directions, weights, biases and thresholds alike, with norms converged. EMMA's
    e_j and Local-Lip's masks and slopes are without gradient on purpose."""
    network = small(activation).double()
    graph = graph_of(network, steps=400)
    rng = generator(1)
    x = torch.rand(12, 1, 6, 6, generator=rng, dtype=torch.float64)
    y, config = torch.arange(12) % 4, replace(CONFIG, rounds=40)

    def loss() -> Tensor:
        graph.refresh()
        return OBJECTIVES[method].loss(graph, x, y, ScheduledWeights.of(0.2, 0.4, 0.7), config)[0]

    loss().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        step = 1e-6 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
        step = torch.where(parameter.detach().abs() > 1e6, 0.0, step)
        with torch.no_grad():
            expected = (parameter.grad * step).sum().item()
            parameter += step
            above = loss().item()
            parameter -= 2 * step
            found = (above - loss().item()) / 2
            parameter += step
        assert found == pytest.approx(expected, rel=5e-3, abs=1e-10), name


def test_intersected_boxes_have_the_gradients_of_maximum_and_minimum() -> None:
    """Bit for bit, equal ends (half to each) and broadcast radii included."""
    rng = generator(3)
    steps = torch.tensor([0.0, 0.5, 1.0, 2.0])

    def drawn(*shape: int) -> Tensor:
        # From few values, so that ends are often equal.
        return steps[torch.randint(4, shape, generator=rng)].requires_grad_(True)

    centre, middle, extent = (drawn(8, 4, 5, 5) for _ in range(3))
    reach = drawn(8, 4, 1, 1)
    given = centre, reach, middle, extent
    found = Intersection.apply(*given)
    expected = (
        torch.maximum(centre - reach, middle - extent),
        torch.minimum(centre + reach, middle + extent),
    )
    assert (expected[0] == centre - reach).logical_and(expected[0] == middle - extent).any()
    weights = [steps[torch.randint(4, e.shape, generator=rng)] for e in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)
    gradients = [torch.autograd.grad(ends, given, weights) for ends in (found, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("layer", [ReLU(), ReLUTheta(torch.full((6, 1, 1), 0.7))])
def test_slopes_in_training_are_the_anchored_ones(layer: Layer) -> None:
    rng = generator(5)
    centre = torch.randn(64, 6, 5, 5, generator=rng)
    lower, upper = (centre + sign * torch.rand(centre.shape, generator=rng) for sign in (-1, 1))
    before = Enclosure(centre, torch.zeros(64), lower, upper, torch.ones(64, dtype=torch.bool))
    after = replace(before, centre=layer(centre), lower=layer(lower), upper=layer(upper))
    expected = anchored_slopes(layer, centre, lower, upper)
    assert expected is not None
    found = clamp_slopes(before, after)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert bool((found == 0.0).equal(expected == 0.0))
    assert {0.0, 1.0} <= set(found.round(decimals=3).unique().tolist())
    point = replace(after, lower=after.centre, upper=after.centre)
    assert not bool(clamp_slopes(before, point).any()), "a box without width"
