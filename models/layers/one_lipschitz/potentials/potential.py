"""What the layers x - W^T L relu(W x + b) share, W a convolution or a matrix, L = diag(l) >= 0.

The layer is a step down the gradient of a convex potential. Its derivative is I - W^T L D W with
0 <= D <= I, so it lengthens no difference where |L^(1/2) W|^2 <= 2 (Meunier et al. 2022,
arXiv:2110.12690; Araujo et al. 2023, arXiv:2303.03169). Deployed are a convolution, ReLU, a
convolution with the weights -L W turned around, and a sum: the verifier finds l in these weights.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.activations import ReLU
from models.layers.affine import Linear
from models.layers.base import DeployedLayer, Layer, Shape, ShapeError, parameter
from models.layers.joins import Add
from models.layers.partial_sums import convolution_in_partial_sums

__all__ = ["Potential"]


class Potential(Layer):
    """weight [inner, c, k, k], k odd, for images [c, h, w] (zero padding (k - 1) / 2), or
    [inner, n] for flat inputs; bias [inner]."""

    one_lipschitz = True

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = parameter(weight)
        self.bias = parameter(bias)

    @abstractmethod
    def lengths(self) -> Tensor:
        """l [inner] or [1], with a gradient where gradients are asked for."""

    @abstractmethod
    def frozen_lengths(self, shape: Shape) -> Tensor:
        """l as it is deployed for inputs of this shape, float64: |L^(1/2) W|^2 <= 2."""

    def forward(self, x: Tensor) -> Tensor:
        lengths = self.lengths() if self.learning() else self.frozen_lengths(tuple(x.shape[1:]))
        shaped = lengths.to(x).reshape(-1, *([1] * (x.dim() - 2)))
        inner = torch.relu(self.inner(x, self.bias)) * shaped
        return x - self.adjoint(inner)

    def learning(self) -> bool:
        """Whether gradients are asked for."""
        return torch.is_grad_enabled() and self.weight.requires_grad

    def inner(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """W x + bias."""
        if self.weight.dim() == 2:
            return F.linear(x, self.weight, bias)
        return F.conv2d(x, self.weight, bias, padding=self._padding())

    def adjoint(self, y: Tensor) -> Tensor:
        """W^T y."""
        if self.weight.dim() == 2:
            return F.linear(y, self.weight.T)
        return F.conv_transpose2d(y, self.weight, padding=self._padding())

    def _padding(self) -> tuple[int, int]:
        return (self.weight.shape[2] // 2, self.weight.shape[3] // 2)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        channels, kernel = self.weight.shape[1], self.weight.shape[2:]
        fits = len(shape) == (3 if kernel else 1) and shape[0] == channels
        if not fits or any(size % 2 == 0 for size in kernel):
            raise ShapeError(
                f"{self.kind} with weight {tuple(self.weight.shape)} cannot take {shape}"
            )
        if self.bias.shape != self.weight.shape[:1]:
            raise ShapeError(f"{self.kind}: a bias of shape {tuple(self.bias.shape)}")
        return shape

    def config(self) -> dict[str, Any]:
        return {}

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        (shape,) = shapes
        weight = self.weight.detach()
        back = weight
        if not weight.is_meta:
            lengths = self.frozen_lengths(shape).to(weight.device, torch.float64)
            shaped = lengths.reshape(-1, *([1] * (weight.dim() - 1)))
            back = (-shaped * weight.to(torch.float64)).to(weight)
        parts: list[DeployedLayer]
        if weight.dim() == 2:
            parts = [DeployedLayer(Linear(weight, self.bias), None, "inner")]
            last = [DeployedLayer(Linear(back.T), ("bent",), "outer")]
        else:
            turned = back.transpose(0, 1).flip(2, 3)
            inner = (weight.shape[0], *shape[1:])
            padding = self._padding()
            parts = _named("inner", convolution_in_partial_sums(weight, self.bias, shape, padding))
            last = _named("outer", convolution_in_partial_sums(turned, None, inner, padding))
            last[0] = last[0]._replace(inputs=("bent",))
        bent = DeployedLayer(ReLU(), (parts[-1].name,), "bent")
        return (*parts, bent, *last, DeployedLayer(Add(), (0, last[-1].name)))


def _named(name: str, chain: tuple[DeployedLayer, ...]) -> list[DeployedLayer]:
    """The chain's layers under names of their own; the last one is called ``name``."""

    def renamed(source: int | str) -> int | str:
        return source if isinstance(source, int) else f"{name}-{source}"

    result = []
    for part in chain:
        inputs = None if part.inputs is None else tuple(renamed(s) for s in part.inputs)
        result.append(DeployedLayer(part.layer, inputs, f"{name}-{part.name}"))
    result[-1] = result[-1]._replace(name=name)
    return result
