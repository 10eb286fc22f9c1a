"""Small networks and the bounds of the IBP family once more, in float64 and by other means."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.architectures.published import build
from models.layers.affine import Conv2d, Linear
from models.layers.kinds import BatchNorm
from models.network import Network
from tests.workers.training.bounds.graphs import generator
from workers.training.config import TrainingConfig
from workers.training.objectives import OBJECTIVES, ScheduledWeights
from workers.training.schedules import Schedule
from workers.training.training_graph import TrainingGraph

EPSILON = 0.2
CONV = {"kind": "conv2d", "out": 4, "kernel": 3, "stride": 2, "padding": 1}
RELU = {"kind": "relu"}
NORM = {"kind": "batch-norm"}


def network_of(*, batch_norm: bool = False, seed: int = 0) -> Network:
    """Convolution, dense layer, dense layer: float64, 4 classes, [1, 6, 6]."""
    norm = [NORM] if batch_norm else []
    rows = [CONV, *norm, RELU, {"kind": "flatten"}, {"kind": "linear", "out": 12}, *norm, RELU]
    network = build(
        {"input": [1, 6, 6], "layers": [*rows, {"kind": "linear", "out": 4}]},
        generator=generator(seed),
    ).double()
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    for layer in network.modules():
        if isinstance(layer, BatchNorm):
            with torch.no_grad():
                # A negative scale turns a box around.
                layer.weight.copy_(torch.linspace(-1.0, 1.5, len(layer.weight)))
                layer.mean.fill_(0.1)
                layer.var.fill_(0.5)
    return network


def residual_of(seed: int = 0) -> Network:
    """The same with two blocks: one adds what it takes itself, one a shortcut with weights."""
    same = {"kind": "conv2d", "out": 4, "kernel": 3, "padding": 1}
    rows = [
        *(CONV, {**RELU, "name": "a"}, same, RELU, {**same, "name": "b"}),
        *({"kind": "add", "from": "a"}, {**RELU, "name": "c"}, {**CONV, "out": 3}, RELU),
        {"kind": "conv2d", "out": 3, "kernel": 3, "padding": 1, "name": "d"},
        {"kind": "conv2d", "out": 3, "kernel": 1, "stride": 2, "from": "c"},
        *({"kind": "add", "from": "d"}, RELU, {"kind": "flatten"}, {"kind": "linear", "out": 4}),
    ]
    network = build({"input": [1, 6, 6], "layers": rows}, generator=generator(seed)).double()
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


def graph_of(network: Network) -> TrainingGraph:
    graph = TrainingGraph(network, power_steps=1, generator=generator(7))
    graph.refresh()
    return graph


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 1, 6, 6, generator=generator(1), dtype=torch.float64)
    return x, torch.arange(count) % 4


def config_of(method: str, **options: object) -> TrainingConfig:
    config = TrainingConfig(method=method, architecture="none", epsilon=EPSILON, norm="linf")
    return replace(config, epsilon_schedule=Schedule.constant(1.0), options=options)


def loss_of(
    graph: TrainingGraph,
    method: str,
    *,
    epsilon: float = EPSILON,
    kappa: float = 0.0,
    step: int = 0,
    **options: object,
) -> Tensor:
    """The loss of ``batch()`` with these options."""
    at = ScheduledWeights.of(epsilon, kappa, 1.0, step)
    return OBJECTIVES[method].loss(graph, *batch(), at, config_of(method, **options))[0]


def affine(network: Network) -> list[tuple[Tensor, Tensor]]:
    """Every convolution and dense layer as a matrix [out, in] and its bias, by unit vectors."""
    found, shape = [], network.input_shape
    for node in network.nodes:
        layer = network.layer(node.name)
        if isinstance(layer, Conv2d | Linear):
            units = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).reshape(-1, *shape)
            zero = layer(torch.zeros_like(units[:1])).flatten(1)
            found.append(((layer(units).flatten(1) - zero).T.detach(), zero[0].detach()))
        shape = node.shape
    return found


def reference_boxes(network: Network, lower: Tensor, upper: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Boxes before each ReLU and of the features, by positive and negative parts of the matrices.

    lower, upper [batch, pixels].
    """
    found = []
    for matrix, bias in affine(network)[:-1]:
        up, down = matrix.clamp_min(0.0).T, matrix.clamp_max(0.0).T
        lower, upper = lower @ up + upper @ down + bias, upper @ up + lower @ down + bias
        found.append((lower, upper))
        lower, upper = lower.relu(), upper.relu()
    return [*found, (lower, upper)]


def reference_gaps(network: Network, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:
    """max over the box of f_j - f_y, sample by sample and class by class: [batch, classes]."""
    low, high = reference_boxes(network, lower.flatten(1), upper.flatten(1))[-1]
    matrix, bias = affine(network)[-1]
    rows = [
        [
            (
                (matrix[j] - matrix[label]).clamp_min(0.0) @ high[sample]
                + (matrix[j] - matrix[label]).clamp_max(0.0) @ low[sample]
                + bias[j]
                - bias[label]
            )
            for j in range(len(matrix))
        ]
        for sample, label in enumerate(y.tolist())
    ]
    return torch.stack([torch.stack(row) for row in rows])


def pixels(epsilon: float = EPSILON) -> tuple[Tensor, Tensor]:
    """Both ends of the allowed pixels."""
    x, _ = batch()
    return (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)


def cross_entropies(gaps: Tensor) -> Tensor:
    """log sum_j exp(f_j - f_y), [batch]."""
    return gaps.exp().sum(1).log()


def clean_loss(network: Network) -> Tensor:
    x, y = batch()
    return F.cross_entropy(network(x), y)
