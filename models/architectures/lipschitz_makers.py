"""Rows of a layer list for almost orthogonal layers, convex potentials, reflectors, l2 pooling."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.architectures.layer_rows import LayerRow
from models.errors import ModelError
from models.layers.euclidean import L2Pool2d
from models.layers.kinds import Layer, Shape
from models.layers.one_lipschitz import (
    AolConv2d,
    AolLinear,
    BroConv2d,
    BroLinear,
    CplConv2d,
    CplLinear,
    SllConv2d,
    SllLinear,
)

__all__ = ["LIPSCHITZ_KINDS", "MAX_PARAMETERS"]

MAX_PARAMETERS = 1 << 27


def _meta(row: LayerRow, *shape: int) -> Tensor:
    if torch.Size(shape).numel() > MAX_PARAMETERS:
        raise ModelError(f"{row.label} has too many parameters", code="model_too_large")
    return torch.empty(shape, device="meta")


def _sized(row: LayerRow, shape: Shape, axes: int) -> int:
    """Channels of an image, or features."""
    if len(shape) != axes:
        wanted = "[channels, h, w]" if axes == 3 else "a flat one"
        row.refuse(f"needs an input {wanted}, not {shape}")
    return shape[0]


def _odd(row: LayerRow) -> tuple[int, int]:
    height, width = row.pair("kernel", 3)
    if height % 2 == 0 or width % 2 == 0:
        row.refuse(f"needs an odd kernel, not {(height, width)}")
    return height, width


def _aol_conv2d(row: LayerRow, shape: Shape) -> Layer:
    channels, out, (height, width) = _sized(row, shape, 3), row.integer("out"), row.pair("kernel")
    return AolConv2d(
        _meta(row, out, channels, height, width),
        _meta(row, out) if row.boolean("bias", True) else None,
        stride=row.pair("stride", 1),
        padding=row.padding(),
    )


def _aol_linear(row: LayerRow, shape: Shape) -> Layer:
    features, out = _sized(row, shape, 1), row.integer("out")
    bias = _meta(row, out) if row.boolean("bias", True) else None
    return AolLinear(_meta(row, out, features), bias)


def _potential_weights(row: LayerRow, shape: Shape, axes: int) -> tuple[Tensor, Tensor]:
    channels = _sized(row, shape, axes)
    inner = row.integer("inner", channels)
    kernel = _odd(row) if axes == 3 else ()
    return _meta(row, inner, channels, *kernel), _meta(row, inner)


def _cpl(kind: type[CplConv2d], axes: int) -> Callable[[LayerRow, Shape], Layer]:
    def maker(row: LayerRow, shape: Shape) -> Layer:
        return kind(*_potential_weights(row, shape, axes), _meta(row, *shape))

    return maker


def _sll(kind: type[SllConv2d], axes: int) -> Callable[[LayerRow, Shape], Layer]:
    def maker(row: LayerRow, shape: Shape) -> Layer:
        weight, bias = _potential_weights(row, shape, axes)
        return kind(weight, bias, _meta(row, *bias.shape))

    return maker


def _rank(row: LayerRow, size: int) -> int:
    rank = row.integer("rank", max(1, size // 2))
    if rank >= size:
        row.refuse(f"needs a rank below {size}, not {rank}")
    return rank


def _bro_conv2d(row: LayerRow, shape: Shape) -> Layer:
    channels = _sized(row, shape, 3)
    rank, (height, width) = _rank(row, channels), row.pair("kernel", 1)
    return BroConv2d(_meta(row, channels, rank, height, width), _meta(row, channels))


def _bro_linear(row: LayerRow, shape: Shape) -> Layer:
    size = _sized(row, shape, 1)
    return BroLinear(_meta(row, size, _rank(row, size)), _meta(row, size))


def _l2_pool(row: LayerRow, shape: Shape) -> Layer:
    kernel = row.pair("kernel")
    return L2Pool2d(kernel=kernel, stride=kernel)


def _global_l2_pool(row: LayerRow, shape: Shape) -> Layer:
    _sized(row, shape, 3)
    whole = (shape[1], shape[2])
    return L2Pool2d(kernel=whole, stride=whole)


LIPSCHITZ_KINDS: dict[str, Callable[[LayerRow, Shape], Layer]] = {
    "aol-conv2d": _aol_conv2d,
    "aol-linear": _aol_linear,
    "bro-conv2d": _bro_conv2d,
    "bro-linear": _bro_linear,
    "cpl-conv2d": _cpl(CplConv2d, 3),
    "cpl-linear": _cpl(CplLinear, 1),
    "global-l2-pool": _global_l2_pool,
    "l2-pool2d": _l2_pool,
    "sll-conv2d": _sll(SllConv2d, 3),
    "sll-linear": _sll(SllLinear, 1),
}
