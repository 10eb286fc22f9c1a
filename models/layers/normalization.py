"""Normalisation of inputs, batch norm with the statistics that inference uses, and what layer
normalisation is made of: numbers less their mean, and numbers over the root of their mean square.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.layers.base import Layer, Shape, ShapeError, as_float32, parameter

__all__ = ["BatchNorm", "Centre", "Normalize", "Softmax", "Standardize"]

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
