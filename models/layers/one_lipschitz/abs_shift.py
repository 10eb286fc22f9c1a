"""|.| on half of the channels, and moves of the other half by one place: exact, and of slope 1.

Between dense rotations |.| on half of the channels does what MaxMin does, and is cheaper; shifts
let places see their neighbours without a convolution (LipNeXt 2026; Wu et al. 2018,
arXiv:1711.08141). At the border the two directions of an axis are one ring: what leaves the group
that moves down enters the one that moves up, at the same edge. So the move is a permutation, and
stays local.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from models.layers.activations import Abs
from models.layers.base import DeployedLayer, Layer, Shape, ShapeError
from models.layers.shapes import Gather, Reshape

__all__ = ["AbsShift"]

#: Channels that move in one direction: one in so many.
SHARE = 8


class AbsShift(Layer):
    """|x| on the first half of the channels; of the others a quarter each moves one place down, up,
    right and left. The result lies in memory as ``channels_last``.
    """

    kind = "abs-shift"
    one_lipschitz = True

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _AbsShift.apply(x.permute(0, 2, 3, 1))
        return result.permute(0, 3, 1, 2)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if len(shape) != 3 or shape[0] % SHARE:
            raise ShapeError(f"{self.kind} needs channels by {SHARE} in [c, h, w], not {shape}")
        return shape

    def places(self, shape: Shape) -> Tensor:
        """Where each number of the result [c * h * w] comes from."""
        size = torch.Size(shape).numel()
        numbers = torch.arange(size).reshape(1, *shape).permute(0, 2, 3, 1)
        moved = torch.empty_like(numbers)
        moved[..., : shape[0] // 2] = numbers[..., : shape[0] // 2]
        for source, target in _moves(numbers, moved):
            target.copy_(source)
        return moved.permute(0, 3, 1, 2).flatten()

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        (shape,) = shapes
        return (
            DeployedLayer(Abs(channels=shape[0] // 2), None, "abs"),
            DeployedLayer(Reshape(shape=(torch.Size(shape).numel(),)), ("abs",), "numbers"),
            DeployedLayer(Gather(self.places(shape)), ("numbers",), "moved"),
            DeployedLayer(Reshape(shape=shape), ("moved",)),
        )


def _moves(x: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(part of x, part of out that it goes to), [batch, h, w, c], of the channels that move."""
    step = x.shape[-1] // SHARE
    start = x.shape[-1] - 4 * step
    down, up, right, left = (
        slice(start + index * step, start + (index + 1) * step) for index in range(4)
    )
    yield x[:, :-1, :, down], out[:, 1:, :, down]
    yield x[:, -1:, :, down], out[:, -1:, :, up]
    yield x[:, 1:, :, up], out[:, :-1, :, up]
    yield x[:, :1, :, up], out[:, :1, :, down]
    yield x[:, :, :-1, right], out[:, :, 1:, right]
    yield x[:, :, -1:, right], out[:, :, -1:, left]
    yield x[:, :, 1:, left], out[:, :, :-1, left]
    yield x[:, :, :1, left], out[:, :, :1, right]


class _AbsShift(torch.autograd.Function):
    """One pass over memory each way, on [batch, h, w, c]; the gradient of |x| at 0 is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        half = x.shape[-1] // 2
        torch.abs(x[..., :half], out=out[..., :half])
        for source, target in _moves(x, out):
            target.copy_(source)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        result = torch.empty(x.shape, dtype=gradient.dtype, device=gradient.device)
        half = x.shape[-1] // 2
        torch.mul(gradient[..., :half], x[..., :half].sign(), out=result[..., :half])
        for source, target in _moves(result, gradient):
            source.copy_(target)
        return result
