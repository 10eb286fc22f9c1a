"""Affine maps with the weights of this step, as ``ForwardPass`` takes them, with gradients.

They are made anew wherever they are asked for (``TrainingGraph.map_at``) and hold nothing of their
own. Row norms broadcast to a value [batch, *output].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.layers.affine import Conv2d, Linear
from models.layers.base import Layer, Shape
from workers.training.transposed import (
    pixel_convolution,
    reads_pixels,
    transposed_convolution,
)

__all__ = ["ScaledMap", "SumMap", "WeightedMap"]


@dataclass(eq=False)
class WeightedMap:
    """A convolution or dense layer: weight and bias as they act, input shape without the batch."""

    layer: Conv2d | Linear
    in_shape: Shape
    weight: Tensor
    bias: Tensor | None
    wide: bool = True

    def apply(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, Conv2d) and reads_pixels(self.layer, x):
            return pixel_convolution(self.layer, x, self.weight, self.bias)
        return self.layer.apply_weight(x, self.weight, self.bias)

    def linear(self, x: Tensor) -> Tensor:
        """The layer without its bias."""
        return self.layer.apply_weight(x, self.weight, None)

    def adjoint(self, y: Tensor) -> Tensor:
        """The transposed layer: [batch, *output] -> [batch, *input]."""
        if isinstance(self.layer, Linear):
            return y @ self.weight
        _, height, width = self.in_shape
        return transposed_convolution(self.layer, self.weight, y, (height, width))

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        # Half the weights instead of half the box: the same numbers, and far fewer to halve.
        half = self.weight * 0.5
        middle = self.layer.apply_weight(upper + lower, half, self.bias)
        return middle, self.layer.apply_weight(upper - lower, half.abs(), None)

    def centred(self, middle: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
        """Middle and half the width of a box's image, from the box's own."""
        return self.apply(middle), self.layer.apply_weight(half, self.weight.abs(), None)

    def scaled(self, then: ScaledMap) -> WeightedMap:
        """This layer and ``then`` behind it, as one layer."""
        ones = [1] * (self.weight.dim() - 1)
        scale, shift = then.scale.reshape(-1, *ones), then.shift.flatten()
        bias = shift if self.bias is None else torch.addcmul(shift, self.bias, scale.flatten())
        return replace(self, weight=self.weight * scale, bias=bias)

    def row_norms_like(self, like: Tensor) -> Tensor:
        rows = torch.linalg.vector_norm(self.weight.flatten(1), dim=1)
        return rows.reshape(1, -1, *([1] * (like.dim() - 2)))


@dataclass(eq=False)
class ScaledMap:
    """Batch norm: scale and shift, [channels, 1, ...]."""

    scale: Tensor
    shift: Tensor
    wide: bool = False

    def apply(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        half = self.scale * 0.5
        return torch.addcmul(self.shift, upper + lower, half), (upper - lower) * half.abs()

    def centred(self, middle: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
        """Middle and half the width of a box's image, from the box's own."""
        return self.apply(middle), half * self.scale.abs()

    def row_norms_like(self, like: Tensor) -> Tensor:
        return self.scale.abs()


@dataclass(eq=False)
class SumMap:
    """A fixed linear layer without a negative entry (sums, means, average pools)."""

    layer: Layer
    rows: Tensor
    wide: bool = False

    def apply(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer((upper + lower) * 0.5), self.layer((upper - lower) * 0.5)

    def centred(self, middle: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
        """Middle and half the width of a box's image, from the box's own."""
        return self.layer(middle), self.layer(half)

    def row_norms_like(self, like: Tensor) -> Tensor:
        return self.rows
