"""Architectures as data: the published ones by name, and layer lists that a request may carry.

A layer list is ``{"input": [c, h, w], "layers": [{"kind": "conv2d", "out": 16, "kernel": 4,
"stride": 2, "padding": 1}, {"kind": "relu"}, {"kind": "flatten"},
{"kind": "linear", "out": 10}]}``; ``models.layer_lists`` says what each kind takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.activations import ReLUTheta
from models.errors import ModelError
from models.layer_lists import Blueprint, blueprint_of
from models.layers import BatchNorm, Conv2d, Linear
from models.network import Network

__all__ = ["ACTIVATIONS", "ARCHITECTURES", "Architecture", "blueprint", "build"]

Row = Mapping[str, Any]
#: Initial thresholds of ReLU-theta (Local-Lip, Huang et al. 2021: 1 or 2).
THETA = 1.0

#: Activations that a named architecture can be built with.
ACTIVATIONS: dict[str, Row] = {
    "relu": {"kind": "relu"},
    "leaky-relu": {"kind": "leaky-relu"},
    "maxmin": {"kind": "maxmin"},
    "relu-theta": {"kind": "relu-theta"},
    "sigmoid": {"kind": "sigmoid"},
    "tanh": {"kind": "tanh"},
}


@dataclass(frozen=True)
class Architecture:
    """A published network: an activation follows every layer but the last."""

    source: str
    input: tuple[int, int, int]
    #: (out channels, kernel, stride, padding) of each convolution.
    convolutions: tuple[tuple[int, int, int, int], ...]
    #: Width of each dense layer, the classes last.
    dense: tuple[int, ...]
    #: "default": torch's own; "he": convolutions N(0, 2 / (k k out)) with bias 0.
    init: str = "default"

    def layer_list(self, activation: Row) -> dict[str, Any]:
        """The same as a layer list."""
        layers: list[Row] = []
        for out, kernel, stride, padding in self.convolutions:
            conv = {"out": out, "kernel": kernel, "stride": stride, "padding": padding}
            layers += [{"kind": "conv2d", **conv}, activation]
        layers.append({"kind": "flatten"})
        for out in self.dense:
            layers += [{"kind": "linear", "out": out}, activation]
        return {"input": list(self.input), "layers": layers[:-1], "init": self.init}


_MNIST, _CIFAR, _TINY = (1, 28, 28), (3, 32, 32), (3, 64, 64)
_LARGE = ((32, 3, 1, 1), (32, 4, 2, 1), (64, 3, 1, 1), (64, 4, 2, 1))
_SIX = ((32, 3, 1, 1), (32, 3, 1, 1), (32, 4, 2, 1), (64, 3, 1, 1), (64, 3, 1, 1))
_EIGHT = (
    (64, 3, 1, 1),
    (64, 3, 1, 1),
    (64, 4, 2, 0),
    (128, 3, 1, 1),
    (128, 3, 1, 1),
    (128, 4, 2, 0),
    (256, 3, 1, 1),
    (256, 4, 2, 0),
)
_SMALL = ((16, 4, 2, 1), (32, 4, 2, 1))
_BCP, _CAP = "BCP (Lee et al. 2020)", "CAP (Wong et al. 2018)"
_COLT = "COLT (Balunovic & Vechev 2020)"

#: The published architectures: a new one is one row here.
ARCHITECTURES: dict[str, Architecture] = {
    "mnist-4c3f": Architecture(_BCP, _MNIST, _LARGE, (512, 512, 10)),
    "cifar-4c3f": Architecture(_BCP, _CIFAR, _LARGE, (512, 512, 10), "he"),
    "cifar-6c2f": Architecture(_BCP, _CIFAR, (*_SIX, (64, 4, 2, 1)), (512, 10), "he"),
    "cifar-6c2f-nopad": Architecture(_BCP, _CIFAR, (*_SIX, (64, 4, 2, 0)), (512, 10), "he"),
    "tiny-8c2f": Architecture(_BCP, _TINY, _EIGHT, (256, 200), "he"),
    "mnist-small": Architecture(_CAP, _MNIST, _SMALL, (100, 10)),
    "cifar-small": Architecture(_CAP, _CIFAR, _SMALL, (100, 10), "he"),
    "mnist-convmed": Architecture(_COLT, _MNIST, ((32, 5, 2, 2), (64, 4, 2, 1)), (100, 10)),
    "cifar-convmed": Architecture(_COLT, _CIFAR, ((32, 5, 2, 2), (128, 4, 2, 1)), (250, 10)),
    "cifar-convmedbig": Architecture(
        _COLT, _CIFAR, ((32, 3, 1, 1), (32, 4, 2, 1), (128, 4, 2, 1)), (250, 10)
    ),
}


def blueprint(architecture: str | Mapping[str, Any], *, activation: str = "relu") -> Blueprint:
    """Layers and shapes of an architecture, without weights and without their memory.

    Raises ModelError (unknown_architecture, invalid_architecture, model_too_large).
    """
    if not isinstance(architecture, str):
        return blueprint_of(architecture)
    named = ARCHITECTURES.get(architecture)
    if named is None:
        raise ModelError(
            f"there is no architecture named {architecture!r}",
            code="unknown_architecture",
            hint="known: " + ", ".join(ARCHITECTURES) + "; or give a layer list",
        )
    if activation not in ACTIVATIONS:
        raise ModelError(
            f"there is no activation named {activation!r}",
            code="unknown_architecture",
            hint="known: " + ", ".join(ACTIVATIONS),
        )
    return blueprint_of(named.layer_list(ACTIVATIONS[activation]))


def build(
    architecture: str | Mapping[str, Any],
    *,
    activation: str = "relu",
    generator: torch.Generator | None = None,
) -> Network:
    """A freshly initialised network; the same generator state gives the same weights."""
    plan = blueprint(architecture, activation=activation)
    tensors: dict[str, Tensor] = {}
    for node in plan.skeleton.nodes:
        layer = plan.skeleton.layer(node.name)
        prefix = f"layers.{node.name}"
        if isinstance(layer, Conv2d | Linear):
            weight, bias = _initial(layer, plan.init, generator)
            tensors[f"{prefix}.weight"] = weight
            if bias is not None:
                tensors[f"{prefix}.bias"] = bias
        elif isinstance(layer, BatchNorm):
            for name, value in (("weight", 1.0), ("bias", 0.0), ("mean", 0.0), ("var", 1.0)):
                tensors[f"{prefix}.{name}"] = torch.full(layer.weight.shape, value)
        elif isinstance(layer, ReLUTheta):
            tensors[f"{prefix}.theta"] = torch.full(layer.theta.shape, THETA)
    return plan.network(tensors)


def _initial(
    layer: Conv2d | Linear, init: str, generator: torch.Generator | None
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias: torch's U(-b, b) with b = 1 / sqrt(fan in), or the papers' normal."""
    shape: Sequence[int] = layer.weight.shape
    if init == "he" and isinstance(layer, Conv2d):
        deviation = math.sqrt(2 / (shape[0] * math.prod(shape[2:])))
        weight = torch.empty(shape).normal_(0, deviation, generator=generator)
        return weight, None if layer.bias is None else torch.zeros(shape[0])
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    weight = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    if layer.bias is None:
        return weight, None
    return weight, torch.empty(shape[0]).uniform_(-bound, bound, generator=generator)
