"""Norm estimates in training: adjoints are adjoints, estimates come from below and arrive."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.architectures.published import build
from workers.training.config import TrainingError
from workers.training.training_graph import TrainingGraph
from workers.verification.bounds.lipschitz import lipschitz_constant
from workers.verification.graph.compiled_network import CompiledNetwork


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def graph_of(layers: list[dict[str, Any]], shape: list[int], *, steps: int = 1) -> TrainingGraph:
    description = {"input": shape, "layers": layers}
    return TrainingGraph(
        build(description, generator=generator(3)), power_steps=steps, generator=generator()
    )


def conv(out: int, **geometry: Any) -> dict[str, Any]:
    return {"kind": "conv2d", "out": out, **geometry}


TAIL = [{"kind": "flatten"}, {"kind": "linear", "out": 3}]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
    st.integers(7, 10),
)
def test_the_adjoint_is_the_adjoint(
    kernel: int, stride: int, padding: list[int], size: int
) -> None:
    row = conv(4, kernel=kernel, stride=stride, padding=padding)
    graph = graph_of([row, {"kind": "relu"}, *TAIL], [2, size, size + 1])
    name = graph.steps[0].name
    x = torch.randn(2, 2, size, size + 1, generator=generator(1))
    y = torch.randn(2, *graph.shapes[name], generator=generator(2))
    op = graph.weighted(name)
    left = (op.linear(x) * y).sum()
    right = (x * op.adjoint(y)).sum()
    assert left.item() == pytest.approx(right.item(), rel=1e-4, abs=1e-4)


@torch.no_grad()
def test_estimates_approach_the_sound_norm_from_below() -> None:
    rows = [conv(6, kernel=3, padding=1), {"kind": "relu"}, conv(4, kernel=4, stride=2, padding=1)]
    graph = graph_of([*rows, {"kind": "relu"}, *TAIL], [2, 8, 8], steps=300)
    graph.refresh()
    estimate = float(graph.lipschitz())
    sound = lipschitz_constant(CompiledNetwork.compile(graph.network))
    assert estimate <= sound
    assert estimate >= 0.97 * sound


@torch.no_grad()
def test_residual_branches_add_and_pools_count_their_windows() -> None:
    rows = [
        {"kind": "conv2d", "out": 2, "kernel": 1, "name": "a"},
        {"kind": "relu"},
        {"kind": "add", "from": "input"},
        {"kind": "max-pool2d", "kernel": 3, "stride": 2},
    ]
    graph = graph_of([*rows, *TAIL], [2, 7, 7], steps=100)
    graph.refresh()
    inner = float(graph.norm(graph.steps[0].name))
    # A pixel lies in up to 2 x 2 windows of 3 with stride 2: a factor of sqrt(4).
    assert float(graph.lipschitz()) == pytest.approx((1 + inner) * 2, rel=1e-5)


def test_a_weight_of_zero_makes_no_nan() -> None:
    graph = graph_of([conv(2, kernel=3), {"kind": "relu"}, *TAIL], [1, 6, 6])
    with torch.no_grad():
        graph.network.layer(graph.steps[0].name).weight.zero_()
    graph.refresh()
    graph.lipschitz().backward()
    assert graph.lipschitz().item() == 0.0
    assert all(bool(torch.isfinite(vector).all()) for vector in graph.vectors.values())


@pytest.mark.parametrize(
    "rows",
    [
        [{"kind": "flatten"}, {"kind": "linear", "out": 3}, {"kind": "relu"}],
    ],
)
def test_what_cannot_be_trained_is_refused(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(TrainingError) as caught:
        graph_of(rows, [1, 6, 6])
    assert caught.value.code == "unsupported_architecture"
