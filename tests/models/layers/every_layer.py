"""A network with each of the layers that are no standard torch module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.layers.activations import (
    Abs,
    AtLeast,
    AtMost,
    Clip,
    MaxMin,
    ReLUTheta,
    Sigmoid,
    Softplus,
    Tanh,
)
from models.layers.joins import Concat, Maximum, Minimum, ReduceMean, ReduceSum, Slice
from models.layers.kinds import Gather
from models.network import Network


def normal(*shape: int) -> Tensor:
    """Standard normal numbers, the same for the same shape's sum."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def every_new_layer() -> Network:
    """All of them in one network on [4, 3, 5]."""
    rows: list[Any] = [
        ("theta", ReLUTheta(normal(4, 3, 5).abs()), ("input",)),
        ("tanh", Tanh(), ("input",)),
        ("join", Concat(axis=0), ("theta", "tanh", "input")),
        ("pairs", MaxMin(), ("join",)),
        ("part", Slice(axis=0, start=1, stop=12, step=3), ("pairs",)),
        ("turned", Gather(torch.tensor([2, 0, 3, 1])), ("part",)),
        ("size", Abs(channels=3), ("turned",)),
        ("all", Abs(), ("size",)),
        ("floor", AtLeast(normal(4, 1, 1)), ("all",)),
        ("roof", AtMost(normal(4, 3, 5)), ("input",)),
        ("high", Maximum(), ("floor", "roof")),
        ("low", Minimum(), ("floor", "tanh")),
        ("wide", Concat(axis=2), ("high", "low")),
        ("clip", Clip(low=-0.7, high=0.9), ("wide",)),
        ("upper", Clip(high=0.8), ("clip",)),
        ("soft", Softplus(), ("upper",)),
        ("sum", ReduceSum(axes=(1,), keepdims=True), ("soft",)),
        ("mean", ReduceMean(axes=(0, 1)), ("sum",)),
        ("sigmoid", Sigmoid(), ("mean",)),
    ]
    return Network((4, 3, 5), rows).eval()
