"""Architectures as data: the published ones by name, and layer lists that a request may carry.

A layer list is ``{"input": [c, h, w], "layers": [{"kind": "conv2d", "out": 16, "kernel": 4,
"stride": 2, "padding": 1}, {"kind": "relu"}, {"kind": "flatten"},
{"kind": "linear", "out": 10}]}``; ``models.architectures.layer_lists`` says what each kind takes.
``models.architectures.families`` are architectures with a depth and a width, such as
``{"name": "liresnet", "depth": 12, "width": 512}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from models.architectures.families import family_layers
from models.architectures.initial_values import initial_tensors
from models.architectures.layer_lists import Blueprint, blueprint_of
from models.errors import ModelError
from models.network import Network

__all__ = ["ACTIVATIONS", "ARCHITECTURES", "Architecture", "blueprint", "build"]

Row = Mapping[str, Any]

#: Activations that a named architecture can be built with; the thresholds of the clamped ones
#: (Local-Lip, Huang et al. 2021) are trained, ``Architecture.clamps`` has the published first ones.
ACTIVATIONS: dict[str, tuple[Row, ...]] = {
    "relu": ({"kind": "relu"},),
    "leaky-relu": ({"kind": "leaky-relu"},),
    "maxmin": ({"kind": "maxmin"},),
    "householder": ({"kind": "householder"},),
    "householder-2": ({"kind": "householder", "order": 2},),
    "clamped-maxmin": (
        {"kind": "maxmin"},
        {"kind": "at-most", "half": "first", "value": 1.0},
        {"kind": "at-least", "half": "second", "value": -1.0},
    ),
    "relu-theta": ({"kind": "relu-theta"},),
    "sigmoid": ({"kind": "sigmoid"},),
    "tanh": ({"kind": "tanh"},),
}


@dataclass(frozen=True)
class Architecture:
    """A published network: an activation follows every layer but the last, and batch norm stands
    before it where the paper has that."""

    source: str
    input: tuple[int, int, int]
    #: (out channels, kernel, stride, padding) of each convolution.
    convolutions: tuple[tuple[int, int, int, int], ...]
    #: Width of each dense layer, the classes last.
    dense: tuple[int, ...]
    #: "default": torch's own; "he": convolutions N(0, 2 / (k k out)) with bias 0.
    init: str = "default"
    #: First thresholds (most, least) of each clamped MaxMin, in order.
    clamps: tuple[tuple[float, float], ...] = ()
    batch_norm: bool = False
    #: (mean, std) of each channel, by which pixels are normalised first.
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def layer_list(self, activation: Sequence[Row]) -> dict[str, Any]:
        """The same as a layer list."""
        layers: list[Row] = []
        if self.pixels is not None:
            mean, std = self.pixels
            layers.append({"kind": "normalize", "mean": list(mean), "std": list(std)})
        clamps = iter(self.clamps)
        norm: list[Row] = [{"kind": "batch-norm"}] if self.batch_norm else []

        def behind() -> list[Row]:
            return [*norm, *_clamped(activation, next(clamps, None))]

        for out, kernel, stride, padding in self.convolutions:
            conv = {"out": out, "kernel": kernel, "stride": stride, "padding": padding}
            layers += [{"kind": "conv2d", **conv}, *behind()]
        layers.append({"kind": "flatten"})
        for out in self.dense[:-1]:
            layers += [{"kind": "linear", "out": out}, *behind()]
        layers.append({"kind": "linear", "out": self.dense[-1]})
        return {"input": list(self.input), "layers": layers, "init": self.init}


def _clamped(activation: Sequence[Row], first: tuple[float, float] | None) -> list[Row]:
    """The activation's rows with these first thresholds, where it has any."""
    if first is None:
        return list(activation)
    values = dict(zip(("at-most", "at-least"), first, strict=True))
    return [
        {**row, "value": values[row["kind"]]} if row["kind"] in values else row
        for row in activation
    ]


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
_SIX_CLAMPS = (
    *((0.1, -0.1), (0.1, -0.15), (0.15, -0.15), (0.15, -0.15), (0.2, -0.2), (0.3, -0.3)),
    (1.2, -1.2),
)
_EIGHT_CLAMPS = (
    *((0.8, -0.8), (1.0, -1.0), (1.4, -1.4), (1.4, -1.4), (1.4, -1.4), (1.6, -1.6)),
    *((2.0, -2.0), (3.0, -3.0), (1.6, -1.6)),
)
_FIVE = ((16, 3, 1, 1), (16, 4, 2, 1), (32, 4, 2, 1))
_SEVEN = ((64, 3, 1, 1), (64, 3, 1, 1), (128, 3, 2, 1), (128, 3, 1, 1), (128, 3, 1, 1))
_MNIST_PIXELS = ((0.1307,), (0.3081,))
_CIFAR_PIXELS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CAP_PIXELS = ((0.485, 0.456, 0.406), (0.225, 0.225, 0.225))
_CTBENCH = "CTBench (Mao et al. 2024); Shi et al. 2021"
_BCP, _CAP = "BCP (Lee et al. 2020)", "CAP (Wong et al. 2018)"
_COLT = "COLT (Balunovic & Vechev 2020)"

#: The published architectures: a new one is one row here.
ARCHITECTURES: dict[str, Architecture] = {
    "mnist-4c3f": Architecture(_BCP, _MNIST, _LARGE, (512, 512, 10)),
    "cifar-4c3f": Architecture(_BCP, _CIFAR, _LARGE, (512, 512, 10), "he"),
    "cifar-6c2f": Architecture(_BCP, _CIFAR, (*_SIX, (64, 4, 2, 1)), (512, 10), "he", _SIX_CLAMPS),
    "cifar-6c2f-nopad": Architecture(
        _BCP, _CIFAR, (*_SIX, (64, 4, 2, 0)), (512, 10), "he", _SIX_CLAMPS
    ),
    "tiny-8c2f": Architecture(_BCP, _TINY, _EIGHT, (256, 200), "he", _EIGHT_CLAMPS),
    "mnist-small": Architecture(_CAP, _MNIST, _SMALL, (100, 10)),
    "cifar-small": Architecture(_CAP, _CIFAR, _SMALL, (100, 10), "he"),
    "cifar-small-normalized": Architecture(
        _CAP, _CIFAR, _SMALL, (100, 10), "he", pixels=_CAP_PIXELS
    ),
    "cifar-4c3f-normalized": Architecture(
        _CAP, _CIFAR, _LARGE, (512, 512, 10), "he", pixels=_CAP_PIXELS
    ),
    "mnist-convmed": Architecture(_COLT, _MNIST, ((32, 5, 2, 2), (64, 4, 2, 1)), (100, 10)),
    "cifar-convmed": Architecture(_COLT, _CIFAR, ((32, 5, 2, 2), (128, 4, 2, 1)), (250, 10)),
    "cifar-convmedbig": Architecture(
        _COLT, _CIFAR, ((32, 3, 1, 1), (32, 4, 2, 1), (128, 4, 2, 1)), (250, 10)
    ),
    **{
        f"{data}-{name}-bn": Architecture(
            _CTBENCH, shape, convolutions, (512, 10), "ibp", batch_norm=True, pixels=pixels
        )
        for name, convolutions in (("cnn5", _FIVE), ("cnn7", _SEVEN))
        for data, shape, pixels in (
            ("mnist", _MNIST, _MNIST_PIXELS),
            ("cifar", _CIFAR, _CIFAR_PIXELS),
        )
    },
    **{
        f"{name}-normalized": Architecture(_COLT, shape, convolutions, dense, pixels=pixels)
        for name, shape, convolutions, dense, pixels in (
            ("mnist-convmed", _MNIST, ((32, 5, 2, 2), (64, 4, 2, 1)), (100, 10), _MNIST_PIXELS),
            ("cifar-convmed", _CIFAR, ((32, 5, 2, 2), (128, 4, 2, 1)), (250, 10), _CIFAR_PIXELS),
            (
                *("cifar-convmedbig", _CIFAR, ((32, 3, 1, 1), (32, 4, 2, 1), (128, 4, 2, 1))),
                *((250, 10), _CIFAR_PIXELS),
            ),
        )
    },
}


def blueprint(
    architecture: str | Mapping[str, Any], *, activation: str = "relu", classifier: bool = True
) -> Blueprint:
    """Layers and shapes of an architecture, without weights and without their memory.

    An ``activation`` in it is used: ``{"name": "mnist-4c3f", "activation": "maxmin"}``. A layer
    list of one output is refused unless ``classifier`` is False. Raises ModelError
    (unknown_architecture, invalid_architecture, model_too_large).
    """
    if isinstance(architecture, str):
        members: dict[str, Any] = {"name": architecture}
    elif "name" in architecture:
        members = dict(architecture)
    else:
        return blueprint_of(architecture, classifier=classifier)
    chosen = members.pop("activation", activation)
    if not isinstance(chosen, str) or chosen not in ACTIVATIONS:
        raise ModelError(
            f"there is no activation named {str(chosen)[:60]!r}",
            code="unknown_architecture",
            hint="known: " + ", ".join(ACTIVATIONS),
        )
    name = members["name"]
    if not isinstance(architecture, str) and (
        len(members) > 1 or not isinstance(name, str) or name not in ARCHITECTURES
    ):
        return blueprint_of(family_layers(members, ACTIVATIONS[chosen]))
    named = ARCHITECTURES.get(name)
    if named is None:
        raise ModelError(
            f"there is no architecture named {name!r}",
            code="unknown_architecture",
            hint="known: " + ", ".join(ARCHITECTURES) + "; or give a layer list",
        )
    return blueprint_of(named.layer_list(ACTIVATIONS[chosen]))


def build(
    architecture: str | Mapping[str, Any],
    *,
    activation: str = "relu",
    generator: torch.Generator | None = None,
    initial: Mapping[str, Any] | None = None,
) -> Network:
    """A freshly initialised network; the same generator state gives the same weights.

    ``initial`` may replace ``init`` (how weights begin) and ``theta`` (ReLU-theta's thresholds).
    """
    plan = blueprint(architecture, activation=activation)
    return plan.network(initial_tensors(plan, generator, **(initial or {})))
