"""Normalisation of inputs, and batch norm with the statistics that inference uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.layers.base import Layer, Shape, ShapeError, as_float32, parameter

__all__ = ["BatchNorm", "Normalize"]


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
