"""Max and average pools over windows of an image."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.affine import four_sides, pair, window_grid
from models.layers.base import Layer, Shape, ShapeError

__all__ = ["AvgPool2d", "MaxPool2d"]


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
