"""Euclidean norms of windows, and sorted axes: 1-Lipschitz, and steep everywhere."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.layers.affine import pair, window_grid
from models.layers.base import Layer, Shape, ShapeError, as_float32

__all__ = ["L2Pool2d", "Sort"]


class L2Pool2d(Layer):
    """Root of the sum of squares of each window and of ``eps`` >= 0, channel by channel.

    No padding, and no two windows share a place. The gradient of a window of zeros is 0 (l2
    pooling: Boureau, Ponce, LeCun 2010; in LipNeXt 2026 the last pool).
    """

    kind = "l2-pool2d"
    one_lipschitz = True

    def __init__(
        self,
        *,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int],
        eps: float = 0.0,
    ) -> None:
        super().__init__()
        self.kernel, self.stride = pair(kernel), pair(stride)
        self.padding, self.dilation = (0, 0, 0, 0), (1, 1)
        self.eps = as_float32(eps)
        if any(step < size for step, size in zip(self.stride, self.kernel, strict=True)):
            raise ModelError(
                f"l2-pool2d with windows of {self.kernel} at steps of {self.stride}: they overlap",
                code="invalid_network",
            )
        if not 0.0 <= self.eps < math.inf:
            raise ModelError(f"l2-pool2d with eps {eps}: not >= 0", code="invalid_network")

    def windows(self, x: Tensor) -> Tensor:
        """[batch, c, h, w] -> [batch, c, h', w', kernel_h, kernel_w]."""
        rows = x.unfold(2, self.kernel[0], self.stride[0])
        return rows.unfold(3, self.kernel[1], self.stride[1])

    def forward(self, x: Tensor) -> Tensor:
        windows = self.windows(x)
        if self.eps:
            return torch.sqrt(windows.square().sum((-2, -1)) + self.eps)
        return torch.linalg.vector_norm(windows, dim=(-2, -1))

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if len(shape) != 3:
            raise ShapeError(f"{self.kind} needs [channels, h, w], not {shape}")
        return (shape[0], *window_grid(shape, self.kernel, self))

    def config(self) -> dict[str, Any]:
        return {"kernel": list(self.kernel), "stride": list(self.stride), "eps": self.eps}


class Sort(Layer):
    """The numbers along an axis in order: the least first, or the largest (``descending``)."""

    kind = "sort"

    def __init__(self, *, axis: int = 0, descending: bool = False) -> None:
        super().__init__()
        self.axis, self.descending = int(axis), bool(descending)

    def forward(self, x: Tensor) -> Tensor:
        return x.sort(dim=self.axis + 1, descending=self.descending).values

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if not 0 <= self.axis < len(shape):
            raise ShapeError(f"{self.kind} along axis {self.axis} of shape {shape}")
        return shape

    def config(self) -> dict[str, Any]:
        return {"axis": self.axis, "descending": self.descending}
