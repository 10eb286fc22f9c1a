"""Transposed convolutions of layers in training: for power steps, and for an attack's gradients.

The padding of a power step's is left to the library's kernel where that can cut it: a slice would
be copied by the next operation. Gradients to pixels, which have few channels, are one product of
matrices and a sum of its windows, because the library's kernel is slow there: on one core of an AMD
EPYC 128 images of MNIST took it 8.3 ms instead of 1.3, of CIFAR-10 10.8 instead of 5.2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.layers.affine import Conv2d

__all__ = ["pixel_convolution", "reads_pixels", "transposed_convolution"]

#: Images have so many channels at most; with more threads the library's kernel may be faster.
CHANNELS, THREADS = 4, 2


def transposed_convolution(
    layer: Conv2d, weight: Tensor, y: Tensor, size: tuple[int, int]
) -> Tensor:
    """W^T y: [batch, *output] -> [batch, channels, *size], with ``weight`` as it acts."""
    top, left, bottom, right = layer.padding
    height, width = size
    sizes = (height + top + bottom, width + left + right)
    spare = [
        size - ((out - 1) * s + d * (k - 1) + 1)
        for size, out, s, d, k in zip(
            sizes, y.shape[2:], layer.stride, layer.dilation, weight.shape[2:], strict=True
        )
    ]
    # output_padding must be smaller than the stride; what is beyond was never read.
    inside = [min(extra, s - 1) for extra, s in zip(spare, layer.stride, strict=True)]
    rest = [extra - taken for extra, taken in zip(spare, inside, strict=True)]
    even = (top, left) == (bottom, right) and not any(rest)
    cut = (top, left) if even else (0, 0)
    full = F.conv_transpose2d(
        y, weight, None, layer.stride, cut, inside, layer.groups, layer.dilation
    )
    if even:
        return full
    if any(rest):
        full = F.pad(full, (0, rest[1], 0, rest[0]))
    return full[:, :, top : top + height, left : left + width]


def reads_pixels(layer: Conv2d, x: Tensor) -> bool:
    """Whether ``pixel_convolution`` is for the layer and this input: few channels, a gradient is
    wanted of them, and a few threads of a processor compute it in the numbers' own type."""
    if not x.requires_grad or x.device.type != "cpu" or x.shape[1] > CHANNELS:
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    top, left, bottom, right = layer.padding
    even = layer.groups == 1 and (top, left) == (bottom, right)
    return even and torch.get_num_threads() <= THREADS


def pixel_convolution(layer: Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's convolution of x [batch, channels, h, w], with ``weight`` and ``bias`` as they
    act; only the gradient to x is computed in another way. The gradients have none themselves."""
    value = layer.apply_weight(x.detach(), weight, bias)
    result: Tensor = _ToPixels.apply(layer, value, x, weight)
    return result


class _ToPixels(torch.autograd.Function):
    """The value as it is, with a gradient to x: those to weight and bias are the value's own, and
    an attack does not ask for them."""

    @staticmethod
    def forward(ctx: Any, layer: Conv2d, value: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        ctx.layer, ctx.size = layer, x.shape[2:]
        ctx.save_for_backward(weight)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor, None]:
        layer, (weight,) = ctx.layer, ctx.saved_tensors
        rows = weight.flatten(1).T.expand(len(gradient), -1, -1)
        windows = torch.bmm(rows, gradient.flatten(2))
        kernel, padding = weight.shape[2:], layer.padding[:2]
        pixels = F.fold(windows, ctx.size, kernel, layer.dilation, padding, layer.stride)
        return None, gradient, pixels, None
