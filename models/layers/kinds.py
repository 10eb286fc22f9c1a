"""Layers of the network graph: each knows how to run, what shape it gives, how it is written down.

A layer is the operator as it is DEPLOYED (one layer, one float32 operator or one fused affine
operator such as MatMul + Add); verification reads the layer's exact parameters, training
differentiates its ``forward``. Layers know nothing of bounds. Shapes never include the batch.
``models.layers.activations`` and ``models.layers.joins`` hold more of them; ``LAYER_KINDS`` names
them all.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import ModelError
from models.layers.activations import AtLeast, AtMost, Clip, MaxMin, ReLUTheta, Sigmoid, Tanh
from models.layers.affine import Conv2d, Linear, four_sides, pair, window_grid
from models.layers.base import ConstantLayer, Layer, Shape, ShapeError, as_float32, parameter
from models.layers.joins import Concat, Maximum, Minimum, ReduceMean, ReduceSum, Slice
from models.layers.reparametrized import (
    NormalizedLinear,
    OrthogonalConv2d,
    OrthogonalLinear,
    ResidualConv2d,
    ResidualOrthogonalLinear,
)

__all__ = [
    "LAYER_KINDS",
    "Add",
    "AvgPool2d",
    "BatchNorm",
    "Conv2d",
    "Divide",
    "Layer",
    "LeakyReLU",
    "Linear",
    "MaxPool2d",
    "Multiply",
    "Normalize",
    "Pad",
    "Permute",
    "ReLU",
    "Reshape",
    "Shape",
    "ShapeError",
    "Shift",
]


class Multiply(ConstantLayer):
    """x * value, elementwise (value broadcasts to the input's shape)."""

    kind = "multiply"

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value


class Divide(ConstantLayer):
    """x / value, elementwise (value broadcasts to the input's shape, no zero in it)."""

    kind = "divide"

    def forward(self, x: Tensor) -> Tensor:
        return x / self.value


class Shift(ConstantLayer):
    """x + value, elementwise (value broadcasts to the input's shape)."""

    kind = "shift"

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


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


class ReLU(Layer):
    """max(x, 0), elementwise."""

    kind = "relu"

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class LeakyReLU(Layer):
    """x where x >= 0, slope * x elsewhere; 0 <= slope <= 1."""

    kind = "leaky-relu"

    def __init__(self, *, slope: float = 0.01) -> None:
        super().__init__()
        self.slope = as_float32(slope)
        if not 0.0 <= self.slope <= 1.0:
            raise ModelError(
                f"leaky-relu with slope {slope}: only 0 to 1 is supported", code="invalid_network"
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope)

    def config(self) -> dict[str, Any]:
        return {"slope": self.slope}


class Add(Layer):
    """x + y of two earlier nodes of the same shape (a residual connection)."""

    kind = "add"
    arity = 2

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def output_shape(self, *shapes: Shape) -> Shape:
        first, second = shapes
        if first != second:
            raise ShapeError(f"add of shapes {first} and {second}")
        return first


class _Pool(Layer):
    def __init__(
        self,
        *,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int],
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, int] = 1,
    ) -> None:
        super().__init__()
        self.kernel = pair(kernel)
        self.stride = pair(stride)
        self.padding = four_sides(padding)
        self.dilation = pair(dilation)

    def config(self) -> dict[str, Any]:
        return {
            "kernel": list(self.kernel),
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
        }

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if len(shape) != 3:
            raise ShapeError(f"{self.kind} needs [channels, h, w], not {shape}")
        return (shape[0], *window_grid(shape, self.kernel, self))


class MaxPool2d(_Pool):
    """Largest value of each window; padding (top, left, bottom, right) counts as minus infinity."""

    kind = "max-pool2d"

    def forward(self, x: Tensor) -> Tensor:
        top, left, bottom, right = self.padding
        x = F.pad(x, (left, right, top, bottom), value=float("-inf"))
        return F.max_pool2d(x, self.kernel, self.stride, 0, self.dilation)


class AvgPool2d(_Pool):
    """Mean of each window; padded places count as zeros (``count_include_pad``) or not at all."""

    kind = "avg-pool2d"

    def __init__(
        self,
        *,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int],
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, int] = 1,
        count_include_pad: bool = False,
    ) -> None:
        super().__init__(kernel=kernel, stride=stride, padding=padding, dilation=dilation)
        self.count_include_pad = bool(count_include_pad)

    def window_sums(self, x: Tensor) -> Tensor:
        """Sum over each window, zero padded: [batch, c, h, w] -> [batch, c, h', w']."""
        top, left, bottom, right = self.padding
        x = F.pad(x, (left, right, top, bottom))
        channels = x.shape[1]
        ones = x.new_ones(channels, 1, *self.kernel)
        return F.conv2d(x, ones, None, self.stride, 0, self.dilation, channels)

    def divisor(self, shape: Shape, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Number of places each window is divided by, [1, 1, h', w'], for an input of ``shape``."""
        one = torch.ones(1, 1, *shape[1:], dtype=dtype, device=device)
        counts = self.window_sums(one)
        if self.count_include_pad:
            counts = torch.full_like(counts, self.kernel[0] * self.kernel[1])
        return counts

    def forward(self, x: Tensor) -> Tensor:
        divisor = self.divisor(tuple(x.shape[1:]), dtype=x.dtype, device=x.device)
        return self.window_sums(x) / divisor

    def config(self) -> dict[str, Any]:
        return {**super().config(), "count_include_pad": self.count_include_pad}


class Reshape(Layer):
    """The same numbers in row-major order under another shape (flatten, squeeze, view)."""

    kind = "reshape"

    def __init__(self, *, shape: tuple[int, ...] | list[int]) -> None:
        super().__init__()
        self.shape = tuple(int(size) for size in shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if torch.Size(shape).numel() != torch.Size(self.shape).numel():
            raise ShapeError(f"cannot view shape {shape} as {self.shape}")
        return self.shape

    def config(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}


class Permute(Layer):
    """Axes in another order; ``axes`` counts from 0 without the batch axis."""

    kind = "permute"

    def __init__(self, *, axes: tuple[int, ...] | list[int]) -> None:
        super().__init__()
        self.axes = tuple(int(axis) for axis in axes)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, *(axis + 1 for axis in self.axes))

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if sorted(self.axes) != list(range(len(shape))):
            raise ShapeError(f"axes {self.axes} do not permute shape {shape}")
        return tuple(shape[axis] for axis in self.axes)

    def config(self) -> dict[str, Any]:
        return {"axes": list(self.axes)}


class Pad(Layer):
    """Constant padding of the last two axes by (top, left, bottom, right) >= 0."""

    kind = "pad"

    def __init__(self, *, padding: tuple[int, ...] | list[int], value: float = 0.0) -> None:
        super().__init__()
        self.padding = four_sides(tuple(padding))
        self.value = as_float32(value)

    def forward(self, x: Tensor) -> Tensor:
        top, left, bottom, right = self.padding
        return F.pad(x, (left, right, top, bottom), value=self.value)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        top, left, bottom, right = self.padding
        if len(shape) < 2 or min(self.padding) < 0:
            raise ShapeError(f"padding {self.padding} does not fit shape {shape}")
        return (*shape[:-2], shape[-2] + top + bottom, shape[-1] + left + right)

    def config(self) -> dict[str, Any]:
        return {"padding": list(self.padding), "value": self.value}


#: Every layer by the name it is written down with: a new layer is one class and one row here.
LAYER_KINDS: dict[str, type[Layer]] = {
    layer.kind: layer
    for layer in (
        Conv2d,
        Linear,
        ResidualConv2d,
        OrthogonalConv2d,
        OrthogonalLinear,
        ResidualOrthogonalLinear,
        NormalizedLinear,
        Multiply,
        Divide,
        Shift,
        Normalize,
        BatchNorm,
        ReLU,
        LeakyReLU,
        Add,
        MaxPool2d,
        AvgPool2d,
        Reshape,
        Permute,
        Pad,
        Clip,
        Sigmoid,
        Tanh,
        AtLeast,
        AtMost,
        ReLUTheta,
        MaxMin,
        Concat,
        Slice,
        Maximum,
        Minimum,
        ReduceSum,
        ReduceMean,
    )
}
