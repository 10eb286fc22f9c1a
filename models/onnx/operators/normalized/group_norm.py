"""Normalisation of each channel by itself, and of groups of channels: what InstanceNormalization
and GroupNormalization compute of one sample.

Both are numbers less their mean over the root of their variance, as layer normalisation is, over
other axes. ONNX Runtime 1.31 computes GroupNormalization by the nodes of its definition (the
variance as E[x^2] - m^2), and InstanceNormalization as c x + (shift - c m) with c = scale / s: that
rounds by some u (|x| + |m|) |c| beside, which the rule of ``Centre`` covers
(``workers.verification.layers.affine``), where no product on the way leaves the range of float32:
scales and shifts of such products must be ordinary numbers (``ORDINARY``).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from models.layers.kinds import Reshape
from models.layers.normalization import Centre, LocalResponse
from models.onnx.graph import Activation, Operation, Translation
from models.onnx.operators.normalized.layer_norm import scaled, standardize

__all__ = [
    "ORDINARY",
    "group_normalization",
    "instance_normalization",
    "local_response",
    "require_ordinary",
]

#: Least scale beside 0, and largest scale. Roots are from 2^-20 to 2^50, and so are at most the
#: numbers (epsilons of ``Standardize``, ``LARGEST`` of its rule): c = scale / root is no denormal
#: number, and c x does not overflow.
ORDINARY = (2.0**-74, 2.0**40)
#: Largest shift beside such products.
LARGEST_SHIFT = 2.0**100


def instance_normalization(operation: Operation, translation: Translation) -> Activation:
    """Each channel of [N, channels, ...] less its mean, over the root of its variance + epsilon,
    times the channel's scale, plus its shift."""
    x = operation.activation()
    if len(x.shape) < 2:
        operation.refuse(f"only [batch, channels, ...] is supported, not rank {x.rank}")
    axes = tuple(range(1, len(x.shape)))
    _require_groups(operation, math.prod(x.shape[1:]))
    scale, shift = (_per_channel(operation, index, x, x.shape[0]) for index in (1, 2))
    require_ordinary(operation, scale, shift)
    numbers = translation.emit(operation, Centre(axes=axes), x)
    result = standardize(operation, translation, axes, numbers, x)
    return scaled(operation, translation, result, scale, shift)


def local_response(operation: Operation, translation: Translation) -> Activation:
    """Local response normalisation of images [N, channels, h, w] over an odd size of channels."""
    x = operation.activation()
    if len(x.shape) != 3:
        operation.refuse(f"only images [batch, c, h, w] are supported, not rank {x.rank}")
    given = {name: operation.attributes[name] for name in ("size", "alpha", "beta", "bias")}
    return translation.emit(operation, LocalResponse(**given), x)


def group_normalization(operation: Operation, translation: Translation) -> Activation:
    """Groups of channels of [N, channels, ...], each with a mean and a variance of its own; scale
    and shift for each channel, before opset 21 for each group."""
    x, groups = operation.activation(), int(operation.attributes["num_groups"])
    if not x.shape:
        operation.refuse(f"only [batch, channels, ...] is supported, not rank {x.rank}")
    if operation.attributes.get("stash_type", 1) != 1:
        operation.refuse("only computation in float32 is supported (stash_type 1)")
    channels = x.shape[0]
    if groups < 1 or channels % groups:
        operation.refuse(f"{groups} groups of {channels} channels", code="shape_mismatch")
    count = math.prod(x.shape) // groups
    _require_groups(operation, count)
    per_group = operation.opset < 21
    given = (
        _per_channel(operation, index, x, groups if per_group else channels) for index in (1, 2)
    )
    repeats = channels // groups if per_group else 1
    scale, shift = (np.repeat(array, repeats, axis=0) for array in given)
    rows = translation.emit(operation, Reshape(shape=(groups, count)), x)
    numbers = translation.emit(operation, Centre(axes=(1,)), rows)
    result = standardize(operation, translation, (1,), numbers, rows)
    result = translation.emit(operation, Reshape(shape=x.shape), result)
    return scaled(operation, translation, result, scale, shift)


def require_ordinary(operation: Operation, *arrays: NDArray[np.float32] | None) -> None:
    """Refuse a scale (the first) and shifts of which a product may vanish or overflow."""
    scale, *shifts = arrays
    if scale is not None:
        size = np.abs(scale[scale != 0])
        if not ((size >= ORDINARY[0]) & (size <= ORDINARY[1])).all():
            operation.refuse("a scale of the normalisation is too large or too small")
    for shift in shifts:
        if shift is not None and not (np.abs(shift) <= LARGEST_SHIFT).all():
            operation.refuse("a shift of the normalisation is too large")


def _require_groups(operation: Operation, count: int) -> None:
    if count < 2:
        operation.refuse("it normalises single numbers, each of which is its own mean")


def _per_channel(operation: Operation, index: int, x: Activation, size: int) -> NDArray[np.float32]:
    """A constant [size], shaped so that it broadcasts over what follows the channels."""
    array = operation.constant(index)
    if array is None or array.shape != (size,):
        shape = None if array is None else array.shape
        operation.refuse(
            f"input {index} has shape {shape}, not ({size},)",
            code="shape_mismatch",
            hint="GroupNormalization has one scale for each channel from opset 21 on, for each "
            "group before",
        )
    return array.reshape(size, *([1] * (len(x.shape) - 1)))
