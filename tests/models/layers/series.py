"""Layers whose deployed form is a chain: skew orthogonal layers in miniature, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.architectures import initial_values
from models.architectures.layer_makers import KINDS
from models.architectures.layer_rows import LayerRow
from models.layers.activations import ReLU
from models.layers.affine import Conv2d, Linear, Multiply, Shift
from models.layers.base import DeployedLayer, Layer, Shape, parameter
from models.layers.joins import Add, Slice
from models.layers.kinds import LAYER_KINDS
from models.layers.shapes import Pad, Permute, Reshape
from models.network import Network

ARCHITECTURE: dict[str, Any] = {
    "input": [1, 28, 28],
    "layers": [
        {"kind": "flatten"},
        {"kind": "linear", "out": 12},
        {"kind": "series", "degree": 4},
        {"kind": "relu"},
        {"kind": "series", "degree": 1},
        {"kind": "linear", "out": 10},
    ],
}


class Series(Linear):
    """sum of W^k x / k! up to a degree, plus bias; deployed term by term (Horner), W stored once.

    z <- x, then z <- x + (W z) / i for i = degree, ..., 1.
    """

    kind = "series"

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, degree: int) -> None:
        super().__init__(weight, bias)
        self.degree = int(degree)

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        eye = torch.eye(len(self.weight), dtype=self.weight.dtype, device=self.weight.device)
        total = eye
        for i in range(self.degree, 0, -1):
            total = eye + self.weight @ total / i
        return total, self.bias

    def config(self) -> dict[str, Any]:
        return {"degree": self.degree}

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        parts = horner(Linear(self.weight), self.degree, 0)
        if self.bias is None:
            return (*parts[:-1], parts[-1]._replace(name=""))
        return (*parts, DeployedLayer(Shift(self.bias), (parts[-1].name,)))


def horner(step: Layer, degree: int, start: int | str) -> list[DeployedLayer]:
    """The series of ``step``, the same object at every term, applied to ``start``."""
    parts: list[DeployedLayer] = []
    last = start
    for i in range(degree, 0, -1):
        parts += [
            DeployedLayer(step, (last,), f"map_{i}"),
            DeployedLayer(Multiply(torch.tensor(1 / i)), (f"map_{i}",), f"scale_{i}"),
            DeployedLayer(Add(), (start, f"scale_{i}"), f"sum_{i}"),
        ]
        last = f"sum_{i}"
    return parts


class SkewConv(Layer):
    """exp(J) of a skew kernel up to a degree, over pixel-unshuffled, padded and cut channels.

    weight [c, c, 3, 3] with c the larger of 4 * input channels and output channels; bias [out].
    """

    kind = "skew-conv"

    def __init__(self, weight: Tensor, bias: Tensor, *, degree: int) -> None:
        super().__init__()
        self.weight, self.bias, self.degree = parameter(weight), parameter(bias), int(degree)

    def kernel(self) -> Tensor:
        """Skew: of the cross-correlation, the transposed one is the negative."""
        return (self.weight - self.weight.transpose(0, 1).flip(2, 3)) / 2

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_unshuffle(x, 2)
        x = F.pad(x, (0, 0, 0, 0, 0, len(self.weight) - x.shape[1]))
        z = x
        for i in range(self.degree, 0, -1):
            z = x + F.conv2d(z, self.kernel(), padding=1) / i
        return z[:, : len(self.bias)] + self.bias[:, None, None]

    def output_shape(self, *shapes: Shape) -> Shape:
        ((_, height, width),) = shapes
        return (len(self.bias), height // 2, width // 2)

    def config(self) -> dict[str, Any]:
        return {"degree": self.degree}

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        ((channels, height, width),) = shapes
        low, wide, deep = (height // 2, width // 2), len(self.weight), 4 * channels
        return (
            DeployedLayer(Reshape(shape=(channels, low[0], 2, low[1], 2)), name="blocks"),
            DeployedLayer(Permute(axes=(0, 2, 4, 1, 3)), ("blocks",), "sorted"),
            DeployedLayer(Reshape(shape=(deep, *low)), ("sorted",), "unshuffled"),
            DeployedLayer(Permute(axes=(1, 2, 0)), ("unshuffled",), "last"),
            DeployedLayer(Pad(padding=(0, 0, 0, wide - deep)), ("last",), "wide"),
            DeployedLayer(Permute(axes=(2, 0, 1)), ("wide",), "padded"),
            *horner(Conv2d(self.kernel(), padding=1), self.degree, "padded"),
            DeployedLayer(Slice(axis=0, start=0, stop=len(self.bias)), ("sum_1",), "cut"),
            DeployedLayer(Shift(self.bias[:, None, None]), ("cut",)),
        )


def convolutional(degree: int = 8) -> Network:
    """Two strided skew layers, [2, 8, 8] -> 3 classes: one pads its channels, one cuts them."""

    def t(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) / 9

    rows: list[tuple[str, Layer, tuple[str, ...]]] = [
        ("pads", SkewConv(t(12, 12, 3, 3), t(12), degree=degree), ("input",)),
        ("relu", ReLU(), ("pads",)),
        ("cuts", SkewConv(t(48, 48, 3, 3) / 3, t(6), degree=degree), ("relu",)),
        ("flat", Reshape(shape=(24,)), ("cuts",)),
        ("head", Linear(t(3, 24) * 9), ("flat",)),
    ]
    return Network((2, 8, 8), rows).eval()


def _row(row: LayerRow, shape: Shape) -> Layer:
    weight = torch.empty(shape[0], shape[0], device="meta")
    bias = torch.empty(shape[0], device="meta") if row.boolean("bias", True) else None
    return Series(weight, bias, degree=row.integer("degree"))


def _first_values(
    layer: Series, row: Mapping[str, Any], init: str, generator: torch.Generator | None
) -> dict[str, Tensor]:
    size = len(layer.weight)
    weight = torch.randn(size, size, generator=generator) / (4 * size**0.5)
    return {"weight": weight} if layer.bias is None else {"weight": weight, "bias": weight[0]}


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer's rows in the tables: its kind, its row of a layer list, its first values."""
    monkeypatch.setitem(LAYER_KINDS, Series.kind, Series)
    monkeypatch.setitem(KINDS, Series.kind, _row)
    monkeypatch.setitem(initial_values._RULES, Series, _first_values)


@pytest.fixture
def known_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside, the tables know the layer."""
    register(monkeypatch)
