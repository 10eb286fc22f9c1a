"""A layer whose deployed form is a chain: skew orthogonal layers in miniature, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from models.architectures import initial_values
from models.architectures.layer_makers import KINDS
from models.architectures.layer_rows import LayerRow
from models.layers.affine import Linear
from models.layers.base import DeployedLayer, Layer, Shape
from models.layers.kinds import LAYER_KINDS, Add, Multiply, Shift

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
        step = Linear(self.weight)
        parts: list[DeployedLayer] = []
        last: int | str = 0
        for i in range(self.degree, 0, -1):
            parts += [
                DeployedLayer(step, (last,), f"map_{i}"),
                DeployedLayer(Multiply(torch.tensor(1 / i)), (f"map_{i}",), f"scale_{i}"),
                DeployedLayer(Add(), (0, f"scale_{i}"), f"sum_{i}"),
            ]
            last = f"sum_{i}"
        if self.bias is None:
            return (*parts[:-1], parts[-1]._replace(name=""))
        return (*parts, DeployedLayer(Shift(self.bias), (last,)))


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
