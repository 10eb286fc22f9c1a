"""Normalisation of inputs, batch norm with the statistics that inference uses, what layer
normalisation is made of (numbers less their mean, and numbers over the root of their mean square),
and local response normalisation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.layers.base import Layer, Shape, ShapeError, as_float32, parameter

__all__ = ["BatchNorm", "Centre", "LocalResponse", "Normalize", "Softmax", "Standardize"]

#: Least and largest number that is added to a mean of squares.
EPSILONS = (1e-12, 1e3)


class Normalize(Layer):
    """(x - mean) / std, the normalisation that a spec names.

    mean, std [channels] along the first axis, or of the input's rank, broadcastable to it.
    """

    kind = "normalize"

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())
        self.mean: Tensor
        self.std: Tensor

    def shaped(self, value: Tensor, rank: int) -> Tensor:
        """``value`` as it broadcasts to inputs of this rank (without the batch)."""
        if value.dim() == rank:
            return value
        return value.reshape(-1, *([1] * (rank - 1))) if value.numel() > 1 else value.reshape(())

    def forward(self, x: Tensor) -> Tensor:
        rank = x.dim() - 1
        return (x - self.shaped(self.mean, rank)) / self.shaped(self.std, rank)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        fits = self.mean.numel() in (1, shape[0])
        if self.mean.dim() == len(shape):
            fits = all(m in (1, s) for m, s in zip(self.mean.shape, shape, strict=True))
        if self.mean.shape != self.std.shape or not fits:
            raise ShapeError(
                f"normalisation with {self.mean.numel()} channels does not fit shape {shape}"
            )
        return shape


class BatchNorm(Layer):
    """Inference batch norm: weight * (x - mean) / sqrt(var + eps) + bias, all [channels]."""

    kind = "batch-norm"

    def __init__(
        self, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.weight = parameter(weight)
        self.bias = parameter(bias)
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("var", var.detach().clone())
        self.mean: Tensor
        self.var: Tensor
        # As deployed: ONNX attributes are float32.
        self.eps = as_float32(eps)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight / torch.sqrt(self.var + self.eps)
        shift = self.bias - self.mean * scale
        ones = [1] * (x.dim() - 2)
        return x * scale.reshape(-1, *ones) + shift.reshape(-1, *ones)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if self.weight.shape != (shape[0],):
            raise ShapeError(f"batch norm of {self.weight.numel()} channels on shape {shape}")
        return shape

    def config(self) -> dict[str, Any]:
        return {"eps": self.eps}


class _OverAxes(Layer):
    """An operator on groups of numbers, which lie along some axes; the shape stays.

    Axes count from 0 without the batch axis.
    """

    def __init__(self, *, axes: tuple[int, ...] | list[int]) -> None:
        super().__init__()
        self.axes = tuple(sorted(int(axis) for axis in axes))

    def batched_axes(self) -> list[int]:
        """The axes of a batched tensor."""
        return [axis + 1 for axis in self.axes]

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape, *others) = shapes
        axes = set(self.axes)
        if not axes or len(axes) != len(self.axes) or not axes <= set(range(len(shape))):
            raise ShapeError(f"{self.kind} over axes {self.axes} of shape {shape}")
        if any(other != shape for other in others):
            raise ShapeError(f"{self.kind} of shapes {list(shapes)}")
        return shape

    def config(self) -> dict[str, Any]:
        return {"axes": list(self.axes)}


class Centre(_OverAxes):
    """x less its mean over some axes."""

    kind = "centre"

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=self.batched_axes(), keepdim=True)


class Standardize(_OverAxes):
    """x / sqrt(mean of x^2 over some axes + eps), where x is the first of two earlier nodes.

    Of the second node y, x is y itself, or y less its mean over the same axes: what the deployed
    network computes the mean square from, perhaps as a variance (Ba et al. 2016; Zhang and
    Sennrich 2019). eps from 1e-12 to 1000.
    """

    kind = "standardize"
    arity = 2

    def __init__(self, *, axes: tuple[int, ...] | list[int], eps: float = 1e-5) -> None:
        super().__init__(axes=axes)
        self.eps = as_float32(eps)
        low, high = (as_float32(end) for end in EPSILONS)
        if not low <= self.eps <= high:
            raise ModelError(
                f"normalisation with epsilon = {eps}: only {EPSILONS[0]} to {EPSILONS[1]} is "
                "supported (without it, numbers that are all alike are divided by 0)",
                code="invalid_network",
            )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        square = x.square().mean(dim=self.batched_axes(), keepdim=True)
        return x / torch.sqrt(square + self.eps)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "eps": self.eps}


class Softmax(_OverAxes):
    """exp(x) over the sum of it along some axes."""

    kind = "softmax"

    def forward(self, x: Tensor) -> Tensor:
        axes = self.batched_axes()
        powers = torch.exp(x - x.amax(axes, keepdim=True))
        return powers / powers.sum(axes, keepdim=True)


class LocalResponse(Layer):
    """x / (bias + alpha / size * sum of x^2 over ``size`` neighbouring channels)^beta, on
    [channels, ...] (Krizhevsky et al. 2012); size is odd, channels beyond the ends are 0."""

    kind = "local-response"

    def __init__(
        self, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
    ) -> None:
        super().__init__()
        self.size = int(size)
        self.alpha, self.beta, self.bias = (as_float32(value) for value in (alpha, beta, bias))
        moderate = 0.0 < self.alpha <= 2.0**20 and 0.0 < self.beta <= 4.0
        moderate = moderate and 2.0**-20 <= self.bias <= 2.0**20
        if not (0 < self.size < 2**16 and self.size % 2 and moderate):
            raise ModelError(
                f"local response normalisation with size = {size}, alpha = {alpha}, beta = {beta}, "
                f"bias = {bias}: only an odd size, alpha up to 2^20, beta up to 4 and bias "
                "from 2^-20 to 2^20 are supported",
                code="invalid_network",
            )

    def window_sums(self, squares: Tensor) -> Tensor:
        """Sums over the neighbours of each channel, [batch, channels, ...]."""
        half, channels = self.size // 2, squares.shape[1]
        places = torch.arange(channels, device=squares.device)
        near = (places[:, None] - places[None, :]).abs() <= half
        return torch.einsum("oc,nc...->no...", near.to(squares.dtype), squares)

    def forward(self, x: Tensor) -> Tensor:
        sums = self.window_sums(x.square())
        return x * (self.bias + self.alpha / self.size * sums).pow(-self.beta)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if len(shape) < 2:
            raise ShapeError(f"{self.kind} needs channels and places, not {shape}")
        return shape

    def config(self) -> dict[str, Any]:
        return {"size": self.size, "alpha": self.alpha, "beta": self.beta, "bias": self.bias}
