"""Networks of one input: layers one after another, and two classes."""

from __future__ import annotations

import torch

from models.layers.base import Layer
from models.layers.kinds import Linear
from models.network import Network

__all__ = ["chain", "number"]


def chain(*layers: Layer) -> Network:
    """One input, the layers, and the classes (value, 0)."""
    rows: list[tuple[str, Layer, tuple[str, ...]]] = []
    last = "input"
    for place, layer in enumerate(layers):
        rows.append((f"n{place}", layer, (last,)))
        last = f"n{place}"
    head = Linear(torch.tensor([[1.0], [0.0]]))
    return Network((1,), [*rows, ("head", head, (last,))]).eval()


def number(kind: type[Layer], value: float) -> Layer:
    """A layer whose constant is one number."""
    return kind(torch.tensor([value]))
