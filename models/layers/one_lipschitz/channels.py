"""Moves between places and channels: space to depth, and channels of zeros."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from models.layers.base import DeployedLayer, Layer, Shape, ShapeError
from models.layers.shapes import Pad, Permute, Reshape

__all__ = ["PadChannels", "SpaceToDepth"]


class SpaceToDepth(Layer):
    """[c, h, w] -> [b b c, h / b, w / b]: each block of b x b places becomes one place.

    Channels are in the order (row in the block, column in the block, c), as ONNX' SpaceToDepth has
    them. The result lies in memory as ``channels_last``.
    """

    kind = "space-to-depth"
    one_lipschitz = True

    def __init__(self, *, block: int = 2) -> None:
        super().__init__()
        self.block = int(block)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        b = self.block
        blocks = x.permute(0, 2, 3, 1).reshape(batch, height // b, b, width // b, b, channels)
        moved = blocks.permute(0, 1, 3, 2, 4, 5)
        return moved.reshape(batch, height // b, width // b, -1).permute(0, 3, 1, 2)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if len(shape) != 3 or shape[1] % self.block or shape[2] % self.block:
            raise ShapeError(f"{self.kind} of blocks of {self.block} does not fit {shape}")
        return (shape[0] * self.block**2, shape[1] // self.block, shape[2] // self.block)

    def config(self) -> dict[str, Any]:
        return {"block": self.block}

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        channels, height, width = shapes[0]
        b = self.block
        return (
            DeployedLayer(Reshape(shape=(channels, height // b, b, width // b, b)), None, "blocks"),
            DeployedLayer(Permute(axes=(2, 4, 0, 1, 3)), ("blocks",), "order"),
            DeployedLayer(Reshape(shape=self.output_shape(*shapes)), ("order",)),
        )


class PadChannels(Layer):
    """Zeros as further channels behind those of an image, ``channels`` in all."""

    kind = "pad-channels"
    one_lipschitz = True

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.channels = int(channels)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).contiguous()
        return F.pad(rows, (0, self.channels - rows.shape[-1])).permute(0, 3, 1, 2)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if len(shape) != 3 or shape[0] > self.channels:
            raise ShapeError(f"{self.kind} to {self.channels} channels does not fit {shape}")
        return (self.channels, *shape[1:])

    def config(self) -> dict[str, Any]:
        return {"channels": self.channels}

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        channels, height, width = shapes[0]
        # A padding is of an image's last two axes.
        rows = Reshape(shape=(channels, height * width))
        return (
            DeployedLayer(rows, None, "rows"),
            DeployedLayer(Pad(padding=(0, 0, self.channels - channels, 0)), ("rows",), "padded"),
            DeployedLayer(Reshape(shape=self.output_shape(*shapes)), ("padded",)),
        )
