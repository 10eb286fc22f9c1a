"""The transposed convolution of a layer in training, for power steps: any padding and stride.

The padding is left to the library's kernel where that can cut it: a slice would be copied by the
next operation.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from models.layers.affine import Conv2d

__all__ = ["transposed_convolution"]


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
