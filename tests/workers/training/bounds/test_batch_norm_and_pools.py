"""Batch norm, average and global average pools in training: bounds, gradients, statistics, a run.

What is certified in the end is the deployed network with its running statistics.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.architectures.published import build
from models.layers.kinds import BatchNorm
from models.network import Network
from tests.extent import part
from tests.workers.training.bounds.graphs import CONFIG, generator, graph_of
from tests.workers.training.runs import config_of, images
from tests.workers.verification.certification import certify
from workers.training import loop
from workers.training.bounds.ball_and_box import TrainingPass, start
from workers.training.loop import Paused, train
from workers.training.objectives import OBJECTIVES, ScheduledWeights
from workers.training.objectives.bounded import (
    Bound,
    ball_and_box,
    global_ball,
    local_ball_and_box,
    whole_network,
)
from workers.training.training_graph import MOMENTUM
from workers.verification.bounds.lipschitz import lipschitz_constant
from workers.verification.forward.propagation import propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding

CPU = torch.device("cpu")
NORM = {"kind": "batch-norm"}
RELU = {"kind": "relu"}
CONV = {"kind": "conv2d", "out": 4, "kernel": 3, "padding": 1}
#: What comes before the last layer.
CASES: dict[str, list[dict[str, Any]]] = {
    "batch norm": [CONV, NORM, RELU, {"kind": "flatten"}, {"kind": "linear", "out": 6}, NORM, RELU],
    "average pool": [
        CONV,
        RELU,
        {"kind": "avg-pool2d", "kernel": 3, "stride": 2, "padding": 1},
        {"kind": "flatten"},
    ],
    "global average pool": [CONV, NORM, RELU, CONV, RELU, {"kind": "global-avg-pool"}],
    "mean over axes": [CONV, RELU, {"kind": "reduce-mean", "axes": [1, 2]}],
    "first of all": [{"kind": "avg-pool2d", "kernel": 2}, NORM, CONV, RELU],
}
BOUNDS = [global_ball, whole_network, ball_and_box, local_ball_and_box]


def network_of(case: str, *, scramble: bool = True) -> Network:
    rows = list(CASES[case])
    if rows[-1]["kind"] not in ("relu", "flatten", "reduce-mean") or case == "first of all":
        rows.append({"kind": "flatten"})
    network = build(
        {"input": [1, 6, 6], "layers": [*rows, {"kind": "linear", "out": 4}]},
        generator=generator(3),
    )
    drawn = generator(11)
    for layer in network.modules():
        if isinstance(layer, BatchNorm) and scramble:
            with torch.no_grad():
                # Negative scales too: they turn a box around.
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=drawn))
                layer.bias.copy_(0.2 * torch.randn(layer.bias.shape, generator=drawn))
                layer.mean.copy_(0.2 * torch.randn(layer.mean.shape, generator=drawn))
                layer.var.copy_(torch.rand(layer.var.shape, generator=drawn) + 0.2)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


def batch(count: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, 6, 6, generator=generator(1), dtype=dtype), torch.arange(count) % 4


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.__name__)
@torch.no_grad()
def test_no_point_of_the_ball_is_beyond_the_worst_logits(bound: Bound, case: str) -> None:
    network = network_of(case)
    graph = graph_of(network)
    x, y = batch()
    found = bound(graph, x, y, 0.3, CONFIG)
    assert torch.allclose(found.logits, network(x), atol=1e-5)
    reach = (found.worst - found.worst.gather(1, y[:, None])).to(torch.float64)
    for seed in range(30):
        step = torch.randn(x.shape, generator=generator(seed))
        step = step / step.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) * 0.3
        logits = network((x + step).clamp(0, 1))
        gaps = (logits - logits.gather(1, y[:, None])).to(torch.float64)
        assert bool((gaps <= reach + 1e-3).all())


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_training_bounds_are_those_of_verification_but_for_norms_and_rounding(case: str) -> None:
    """A map and the batch norm behind it have one norm there and the product of two here."""
    network = network_of(case)
    graph = graph_of(network)
    estimate, sound = float(graph.lipschitz()), lipschitz_constant(CompiledNetwork.compile(network))
    assert estimate >= 0.97 * sound
    if not any(row["kind"] == "batch-norm" for row in CASES[case]):
        assert estimate <= sound * (1 + 1e-6)
    x, _ = batch()
    ours = TrainingPass(graph).run(start(x, 0.05, "l2"))
    region = Region(x, torch.full((len(x),), 0.05, dtype=torch.float64), "l2", True)
    theirs = propagate(
        CompiledNetwork.compile(network),
        region,
        rounding=Rounding.ignored(),
        dtype=torch.float64,
    )
    assert theirs.lower is not None
    assert theirs.upper is not None
    assert torch.allclose(ours.centre.double(), theirs.centre, atol=1e-5)
    # Estimates of norms come from below.
    room = 0.03 * (theirs.upper - theirs.lower) + 1e-5
    assert bool((ours.lower <= theirs.lower + room).all())
    assert bool((ours.upper >= theirs.upper - room).all())
    corner = torch.maximum(theirs.upper - theirs.centre, theirs.centre - theirs.lower)
    radius = torch.minimum(theirs.radius, corner.flatten(1).norm(dim=1))
    assert bool((ours.radius >= 0.97 * radius).all())


#: Each method with each case, by the batch's statistics or not; by day each of them at least once.
DIFFERENTIATED = list(
    itertools.product(["lmt", "gloro", "bcp"], ["batch norm", "global average pool"], [True, False])
)


@pytest.mark.parametrize(("method", "case", "by_batch"), part(DIFFERENTIATED, 0, 3, 6, 8))
def test_gradients_are_those_of_the_loss(method: str, case: str, by_batch: bool) -> None:
    """Through the statistics of the batch as well: they move with every weight."""
    network = network_of(case).double()
    graph = graph_of(network, steps=4000)
    rng = generator(1)
    x, y = batch(dtype=torch.float64)
    config = replace(CONFIG, rounds=40)

    def loss() -> Tensor:
        graph.refresh()
        objective = OBJECTIVES[method].loss
        at = ScheduledWeights.of(0.1, 0.4, 0.7)
        if not by_batch:
            return objective(graph, x, y, at, config)[0]
        with graph.by_batch():
            return objective(graph, x, y, at, config)[0]

    loss().backward()
    # The vectors have converged. A weight's small step turns them by as little, which their norms
    # feel in second order only: a few more power steps are enough.
    graph.power_steps = 5
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        step = 1e-6 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
        with torch.no_grad():
            expected = (parameter.grad * step).sum().item()
            parameter += step
            above = loss().item()
            parameter -= 2 * step
            found = (above - loss().item()) / 2
            parameter += step
        assert found == pytest.approx(expected, rel=1e-2, abs=1e-9), name


@pytest.mark.parametrize("method", [m for m, row in OBJECTIVES.items() if row.any_network])
@pytest.mark.parametrize("case", ["global average pool", "first of all"])
def test_every_method_has_finite_gradients(method: str, case: str) -> None:
    network = network_of(case)
    graph = graph_of(network, steps=1)
    x, y = batch(8)
    config = replace(CONFIG, method=method, sparsity=0.01)
    with graph.by_batch():
        loss, _ = OBJECTIVES[method].loss(graph, x, y, ScheduledWeights.of(0.3, 0.5, 1.0), config)
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name


@torch.no_grad()
def test_a_batch_moves_the_running_statistics_once_and_only_in_a_step() -> None:
    network = network_of("batch norm")
    graph = graph_of(network)
    x, _ = batch()
    layers = [layer for layer in network.modules() if isinstance(layer, BatchNorm)]
    before = [(layer.mean.clone(), layer.var.clone()) for layer in layers]
    graph.features(x)
    graph.keep_statistics()
    for layer, (mean, var) in zip(layers, before, strict=True):
        assert torch.equal(layer.mean, mean)
        assert torch.equal(layer.var, var)
    name = next(step.name for step in graph.steps if isinstance(step.op, BatchNorm))
    with graph.by_batch():
        graph.features(x)
        seen = graph.features(x)
    graph.keep_statistics()
    assert not [key for key in graph.vectors if key.endswith((".mean", ".var"))]
    values = graph.run(graph.steps[0], x)
    reference = torch.nn.BatchNorm2d(4, momentum=MOMENTUM)
    first, (mean, var) = layers[0], before[0]
    reference.running_mean, reference.running_var = mean.clone(), var.clone()
    normal = reference(values)
    assert torch.allclose(first.mean, reference.running_mean, atol=1e-6)
    assert torch.allclose(first.var, reference.running_var, atol=1e-6)
    with graph.by_batch():
        scale, shift = graph.scale_and_shift(name, values)
    weight, bias = (p.reshape(-1, 1, 1) for p in (first.weight, first.bias))
    assert torch.allclose(values * scale + shift, normal * weight + bias, atol=1e-5)
    assert not torch.allclose(seen, graph.features(x))


ARCHITECTURE = {
    "input": [1, 28, 28],
    "layers": [
        {"kind": "conv2d", "out": 8, "kernel": 4, "stride": 2, "padding": 1},
        NORM,
        RELU,
        {"kind": "avg-pool2d", "kernel": 2},
        {"kind": "conv2d", "out": 16, "kernel": 3, "padding": 1},
        NORM,
        RELU,
        {"kind": "avg-pool2d", "kernel": 3, "stride": 2},
        {"kind": "flatten"},
        {"kind": "linear", "out": 10},
    ],
}


def test_a_network_with_batch_norm_and_pools_learns_and_is_certified() -> None:
    config = config_of(
        "bcp", architecture=ARCHITECTURE, epochs=20, learning_rate=5e-3, augmentation="none"
    )
    data = images(120)
    network, history = train(config, data, device=CPU)
    assert history[-1]["validation_accuracy"] >= 0.9
    assert history[-1]["validation_robust"] >= 0.5
    x = data.x[:20].float().numpy() / np.float32(255)
    deployed = network.deployed().eval()
    found = certify(
        deployed,
        x,
        ("3/10",),
        data.y[:20].numpy(),
        method="bcp",
        norm="l2",
        radius=False,
        attack=None,
    )
    assert found.certified.mean() >= 0.5


def test_a_resumed_run_keeps_the_running_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOOK_EVERY", 1)
    config, data = config_of("gloro", architecture=ARCHITECTURE, epochs=1), images()
    whole, _ = train(config, data, device=CPU)
    path = tmp_path / "checkpoint.safetensors"
    pauses = itertools.count()
    with pytest.raises(Paused):
        train(config, data, device=CPU, checkpoint=path, should_pause=lambda: next(pauses) == 0)
    again, _ = train(config, data, device=CPU, checkpoint=path)
    first, second = whole.state_dict(), again.state_dict()
    assert any(name.endswith("mean") for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)
