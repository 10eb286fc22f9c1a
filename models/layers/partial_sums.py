"""A dense matrix across channels, deployed as sums of partial sums: few roundings per output.

In float32 a sum of n products, in whatever order, is known to n roundings only, and a certificate
has to pay for all of them. With the input channels in blocks, each block's products are summed by
themselves (a grouped convolution) and then the blocks' results, level by level (ReduceSum): every
product meets as many roundings as its block and each level have terms, not as many as there are
channels. The verifier recognises the chain as the one matrix that it is
(``workers.verification.graph.partial_sums``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from models.layers.affine import Conv2d, Shift
from models.layers.base import DeployedLayer, Layer
from models.layers.joins import ReduceSum
from models.layers.shapes import Reshape

__all__ = [
    "block_and_levels",
    "convolution_in_partial_sums",
    "groups_of",
    "in_partial_sums",
    "summed_convolution",
]

#: Numbers that the parts of one deployed convolution may be, per sample.
PARTS = 2**18


def block_and_levels(channels: int, levels: int) -> tuple[int, ...]:
    """Sizes whose product is ``channels`` and whose sum is least: the block, then each level.

    At most ``levels`` levels; a level of one term is left out. Larger sizes come first.
    """
    if levels == 0:
        return (channels,)
    best: tuple[int, ...] = (channels,)
    for size in range(2, math.isqrt(channels) + 1):
        if channels % size == 0:
            # The smallest size is the last level.
            rest = block_and_levels(channels // size, levels - 1)
            found = tuple(sorted((*rest, size), reverse=True))
            if sum(found) < sum(best):
                best = found
    return best


def in_partial_sums(
    weight: Tensor, bias: Tensor | None, places: tuple[int, ...], sizes: Sequence[int]
) -> tuple[DeployedLayer, ...]:
    """The chain of layers for ``weight`` [out, in] at every place of an image [in, h, w].

    sizes: of ``block_and_levels(in, ...)``. places: (h, w), or () for an image of one place, where
    with some level the result is [out]; else it is [out, h, w].
    """
    out, channels = weight.shape
    block, *levels = sizes
    groups = math.prod(levels)
    assert block * groups == channels
    kernel = weight.reshape(out, groups, block).transpose(0, 1).reshape(-1, block, 1, 1)
    rows: list[tuple[str, Layer]] = [
        ("partial", Conv2d(kernel, None if levels else bias, groups=groups))
    ]
    if levels:
        rows.append(("levels", Reshape(shape=(*levels, out, *places))))
        rows += [(f"sum{index}", ReduceSum(axes=(0,))) for index in range(len(levels))]
        if bias is not None:
            rows.append(("bias", Shift(bias.reshape(out, *(1 for _ in places)))))
    names: list[str | None] = [None, *(name for name, _ in rows[:-1])]
    last = len(rows) - 1
    return tuple(
        DeployedLayer(
            layer,
            (0,) if before is None else (before,),
            "" if index == last else name,
        )
        for index, ((name, layer), before) in enumerate(zip(rows, names, strict=True))
    )


def groups_of(channels: int, taps: int, places: int) -> int:
    """Groups of input channels to be summed apart: the fewest roundings within ``PARTS``.

    places: numbers of one channel of the result (times its channels over those of the input).
    """
    fitting = [
        groups
        for groups in range(1, channels + 1)
        if channels % groups == 0 and groups * channels * places <= max(PARTS, channels * places)
    ]
    return min(fitting, key=lambda groups: taps * channels // groups + groups)


def convolution_in_partial_sums(
    weight: Tensor,
    bias: Tensor | None,
    shape: tuple[int, ...],
    padding: tuple[int, ...],
    stride: tuple[int, int] = (1, 1),
) -> tuple[DeployedLayer, ...]:
    """The chain of layers for a kernel [out, in, h, w] on images [in, h, w] of this shape."""
    out, channels, height, width = weight.shape
    whole = Conv2d(weight, bias, padding=padding, stride=stride)
    _, rows, columns = whole.output_shape(shape)
    groups = groups_of(channels, height * width, -(-out * rows * columns // channels))
    levels = () if groups == 1 else (groups,)
    return summed_convolution(whole, shape, (channels // groups, *levels))


def summed_convolution(
    conv: Conv2d, shape: tuple[int, ...], sizes: Sequence[int]
) -> tuple[DeployedLayer, ...]:
    """The chain of layers for a convolution on images [in, h, w] of this shape.

    sizes: input channels of a block, then the terms of each level; their product is the channels of
    a group. The results of several groups stay apart, along an axis in front of the levels.
    """
    out, channels, height, width = conv.weight.shape
    block, *levels = sizes
    blocks, kept = math.prod(levels), conv.groups
    assert block * blocks == channels
    if not levels:
        return (DeployedLayer(conv, (0,)),)
    _, rows, columns = conv.output_shape(shape)
    each = out // kept
    kernel = conv.weight.reshape(kept, each, blocks, block, height, width).transpose(1, 2)
    kernel = kernel.reshape(blocks * out, block, height, width)
    partial = Conv2d(
        kernel,
        padding=conv.padding,
        stride=conv.stride,
        dilation=conv.dilation,
        groups=kept * blocks,
    )
    names = ["sum", *(f"sum{index}" for index in range(1, len(levels)))]
    apart = () if kept == 1 else (kept,)
    view = Reshape(shape=(*apart, *levels, each, rows, columns))
    parts = [
        DeployedLayer(partial, (0,), "partial"),
        DeployedLayer(view, ("partial",), "levels"),
        *(
            DeployedLayer(ReduceSum(axes=(len(apart),)), (before,), name)
            for before, name in zip(["levels", *names], names, strict=False)
        ),
    ]
    if apart:
        parts.append(DeployedLayer(Reshape(shape=(out, rows, columns)), (names[-1],), "groups"))
    if conv.bias is not None:
        shift = Shift(conv.bias.reshape(out, 1, 1))
        parts.append(DeployedLayer(shift, (parts[-1].name,), "bias"))
    parts[-1] = parts[-1]._replace(name="")
    return tuple(parts)
