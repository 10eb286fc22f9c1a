"""Optimisers by the name that a recipe gives: a new one is one row of ``OPTIMIZERS``.

Each is made for a whole network, because some treat the parameters of some layers in their own way.
A parameter group may hold ``scale``, by which its learning rate differs from the run's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from models.layers.one_lipschitz import SkewConv2d
from models.layers.reparametrized import NormalizedLinear, OrthogonalLinear
from models.network import Network
from workers.training.optimizers.orthogonal_muon import OrthogonalMuon

__all__ = ["NORMALIZED", "OPTIMIZERS", "Maker", "set_rate"]

#: Layers whose map does not change with the size of their weight.
NORMALIZED = (NormalizedLinear, OrthogonalLinear, SkewConv2d)
#: (network, its parameters that are trained, learning rate, weight decay) -> the optimiser.
Maker = Callable[[Network, Sequence[nn.Parameter], float, float], torch.optim.Optimizer]


def _plain(optimizer: Callable[..., torch.optim.Optimizer], **options: object) -> Maker:
    """One that treats all parameters alike."""

    def make(
        network: Network, parameters: Sequence[nn.Parameter], rate: float, decay: float
    ) -> torch.optim.Optimizer:
        return optimizer(parameters, lr=rate, weight_decay=decay, **options)

    return make


def _adam(
    network: Network, parameters: Sequence[nn.Parameter], rate: float, decay: float
) -> torch.optim.Optimizer:
    """Adam; on a processor in one pass over each parameter. Its separate operations took 3 times as
    long, 8 times where second moments are 0: a dead neuron's, whose roots are slow."""
    on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=on_cpu or None)


def _sgd_normalized(
    network: Network, parameters: Sequence[nn.Parameter], rate: float, decay: float
) -> torch.optim.Optimizer:
    """SGD whose weight decay is for weights that are normalised before they act: there it sets how
    fast they turn and takes nothing from the map (as LipConvnets were trained)."""
    layers = (network.layer(node.name) for node in network.nodes)
    normalized = {layer.weight for layer in layers if isinstance(layer, NORMALIZED)}
    groups = [
        {"params": [p for p in parameters if p in normalized], "weight_decay": decay},
        {"params": [p for p in parameters if p not in normalized], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9)


OPTIMIZERS: dict[str, Maker] = {
    "adam": _adam,
    "nadam": _plain(torch.optim.NAdam),
    "orthogonal-muon": OrthogonalMuon.of_network,
    "sgd": _plain(torch.optim.SGD, momentum=0.9, nesterov=True),
    "sgd-normalized": _sgd_normalized,
}


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step, of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
