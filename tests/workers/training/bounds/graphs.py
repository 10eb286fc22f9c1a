"""Networks, graphs and a config for tests of the bounds that training differentiates."""

from __future__ import annotations

import torch

from models.network import Network
from workers.training.config import TrainingConfig
from workers.training.training_graph import TrainingGraph

CONFIG = TrainingConfig(method="bcp", architecture="mnist-small", epsilon=0.3, rounds=10)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def graph_of(network: Network, steps: int = 200) -> TrainingGraph:
    """Its norms after so many power steps."""
    graph = TrainingGraph(network, power_steps=steps, generator=generator(7))
    graph.refresh()
    return graph
