"""ONNX operators that move numbers between places and channels, or take them several times.

Moves are reshapes and permutations; copies are slices that are joined again: no number changes.
What a linear Resize puts between two places is a product with constants.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from models.layers.joins import Concat, Slice
from models.layers.kinds import Conv2d, Permute, Reshape
from models.onnx.graph import Activation, Constant, Operation, Translation

__all__ = ["depth_to_space", "padded_by_copies", "resize", "space_to_depth"]

#: Copies of one row that an operator may ask for.
MOST_COPIES = 64
#: How Resize finds the place that it copies: for whole factors they all repeat each place.
_REPEATING = (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"))
#: Places of the sides that a linear Resize changes, together, at least: five numbers to mix.
_FEWEST_PLACES = 6
#: Places of an axis from here on have coordinates that float32 rounds to those of others.
_MOST_PLACES = 1 << 21
#: How it finds the two places that it mixes (linear), where that is taken.
_BETWEEN = ("asymmetric", "half_pixel", "pytorch_half_pixel")


def space_to_depth(operation: Operation, translation: Translation) -> Activation:
    """SpaceToDepth: [c, h, w] -> [b b c, h / b, w / b], channels as (row, column, c)."""
    x, block = _image_and_block(operation)
    channels, height, width = x.shape
    if height % block or width % block:
        operation.refuse(f"blocks of {block} do not divide {height} x {width}")
    views = (channels, height // block, block, width // block, block)
    x = translation.emit(operation, Reshape(shape=views), x)
    x = translation.emit(operation, Permute(axes=(2, 4, 0, 1, 3)), x)
    shape = (channels * block**2, height // block, width // block)
    return translation.emit(operation, Reshape(shape=shape), x)


def depth_to_space(operation: Operation, translation: Translation) -> Activation:
    """DepthToSpace, its inverse: channels as (row, column, c), or as (c, row, column): CRD."""
    x, block = _image_and_block(operation)
    channels, height, width = x.shape
    if channels % block**2:
        operation.refuse(f"blocks of {block} do not divide {channels} channels")
    left = channels // block**2
    mode = operation.attributes.get("mode", b"DCR").decode(errors="replace")
    orders = {
        "DCR": ((block, block, left, height, width), (2, 3, 0, 4, 1)),
        "CRD": ((left, block, block, height, width), (0, 3, 1, 4, 2)),
    }
    if mode not in orders:
        operation.refuse(f"mode {mode!r} is not supported", code="invalid_onnx")
    views, axes = orders[mode]
    x = translation.emit(operation, Reshape(shape=views), x)
    x = translation.emit(operation, Permute(axes=axes), x)
    return translation.emit(operation, Reshape(shape=(left, height * block, width * block)), x)


def _image_and_block(operation: Operation) -> tuple[Activation, int]:
    x, block = operation.activation(), int(operation.attributes["blocksize"])
    if len(x.shape) != 3:
        operation.refuse(f"only images [batch, c, h, w] are supported, not rank {x.rank}")
    if not 1 <= block <= max(x.shape):
        operation.refuse(f"blocksize = {block}", code="invalid_onnx")
    return x, block


def resize(operation: Operation, translation: Translation) -> Activation:
    """Resize and Upsample by whole factors to the nearest place; an image's two axes by powers of
    two to what lies between places (linear)."""
    attributes = operation.attributes
    words = {
        key: value.decode(errors="replace")
        for key, value in attributes.items()
        if isinstance(value, bytes)
    }
    mode, how = words.get("mode"), words.get("coordinate_transformation_mode", "asymmetric")
    nearest = words.get("nearest_mode", "floor")
    if words.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        operation.refuse("only the policy 'stretch' is supported")
    factors = _factors(operation, translation)
    others = attributes.get("antialias") or attributes.get("exclude_outside")
    if mode == "linear" and how in _BETWEEN and not others:
        return _interpolated(operation, translation, factors, how)
    if mode != "nearest" or (how, nearest) not in _REPEATING:
        operation.refuse(
            f"mode {mode!r} with {(how, nearest)} is not supported: only nearest, asymmetric with "
            "floor or half_pixel with round_prefer_floor, and linear with asymmetric or half_pixel",
            hint="resize by a whole factor to the nearest place, or before the network",
        )
    return _repeated(operation, translation, factors)


def _factors(operation: Operation, translation: Translation) -> list[Fraction]:
    """The factor of each axis without the batch, from scales or from sizes."""
    x, attributes = operation.activation(), operation.attributes
    named = attributes.get("axes")
    axes = [*range(x.rank)] if named is None else [*operation.axes(named, x.rank)]
    target = operation.input(3) if operation.opset >= 11 else None
    if target is not None:
        if not isinstance(target, Constant) or target.value.dtype.kind != "i" or target.computed:
            operation.refuse_batch("the sizes depend on the batch size")
        if target.value.size > x.rank:
            operation.refuse(f"{target.value.size} sizes for rank {x.rank}", code="shape_mismatch")
        sizes, others = target.value.reshape(-1).tolist(), target.other.reshape(-1).tolist()
        own = [translation.batch, *((size, size) for size in x.shape)]
        given = []
        for axis, new in zip(axes, zip(sizes, others, strict=True), strict=False):
            if new[0] != new[1] and new != own[axis]:
                operation.refuse_batch("the sizes depend on the batch size")
            given.append(Fraction(1) if new == own[axis] else Fraction(new[0], own[axis][0]))
        count = len(sizes)
    else:
        if operation.op_type == "Upsample" and operation.opset < 9:
            scales = [float(scale) for scale in attributes["scales"]]
        else:
            array = operation.constant(1 if operation.opset < 11 else 2)
            scales = [] if array is None else [float(scale) for scale in array.reshape(-1)]
        if not all(math.isfinite(scale) for scale in scales):
            operation.refuse(f"scales {scales[:8]}", code="invalid_onnx")
        given, count = [Fraction(scale) for scale in scales], len(scales)
    if count != len(axes):
        operation.refuse(f"{count} factors or sizes for {len(axes)} axes", code="shape_mismatch")
    factors = [Fraction(1)] * x.rank
    for axis, factor in zip(axes, given, strict=True):
        factors[axis] = factor
    if factors[0] != 1:
        operation.refuse_batch("it resizes the batch axis")
    return factors[1:]


def _repeated(
    operation: Operation, translation: Translation, factors: list[Fraction]
) -> Activation:
    """Each place several times."""
    x = operation.activation()
    if any(factor.denominator != 1 or not 1 <= factor <= MOST_COPIES for factor in factors):
        operation.refuse(
            f"factors {[str(factor) for factor in factors]} are not supported: whole numbers up to "
            f"{MOST_COPIES}"
        )
    for axis, factor in enumerate(factors):
        if factor > 1:
            shape = x.shape
            if shape[axis] * factor > _MOST_PLACES:
                operation.refuse(f"an axis of {shape[axis] * factor} places is too long")
            view = Reshape(shape=(*shape[: axis + 1], 1, *shape[axis + 1 :]))
            parts = [translation.emit(operation, view, x)] * int(factor)
            x = translation.emit(operation, Concat(axis=axis + 1), *parts)
            shape = (*shape[:axis], shape[axis] * int(factor), *shape[axis + 1 :])
            x = translation.emit(operation, Reshape(shape=shape), x)
    return x


def _interpolated(
    operation: Operation, translation: Translation, factors: list[Fraction], how: str
) -> Activation:
    """Between two places along one or both of an image's axes: one matrix.

    By powers of two, where every coordinate and every weight is a number of float32, exactly, so
    that ONNX Runtime's coefficients are ours however it computes them. It adds four products of
    three factors, which the verifier knows of such matrices.
    """
    x = operation.activation()
    powers = all(
        factor.numerator & (factor.numerator - 1) == 0
        and factor.denominator & (factor.denominator - 1) == 0
        and Fraction(1, MOST_COPIES) <= factor <= MOST_COPIES
        for factor in factors
    )
    if len(x.shape) != 3 or not powers or factors[0] != 1:
        operation.refuse(
            f"linear with factors {[str(factor) for factor in factors]} is not supported: only "
            "powers of two along the height and the width of images [batch, c, h, w]",
            hint="resize by a power of two or to the nearest place, or before the network",
        )
    resized = [axis for axis in (1, 2) if factors[axis] != 1]
    if resized and sum(x.shape[axis] for axis in resized) < _FEWEST_PLACES:
        operation.refuse(f"linear on an image of {x.shape[1]} x {x.shape[2]} is not supported")
    matrices = [
        _mixing(operation, translation, factors[axis], x.shape[axis], how) for axis in resized
    ]
    if len(resized) == 2:
        return _over_both(operation, translation, x, *matrices)
    for axis, matrix in zip(resized, matrices, strict=True):
        x = _along(operation, translation, x, matrix, axis)
    return x


def _mixing(
    operation: Operation, translation: Translation, factor: Fraction, size: int, how: str
) -> NDArray[np.float32]:
    """What an axis of ``size`` places becomes."""
    out = int(size * factor)
    if out < 1:
        operation.refuse(f"nothing is left of {size} places", code="shape_mismatch")
    _take(operation, translation, out, size)
    matrix = np.zeros((out, size), dtype=np.float32)
    for place in range(out):
        at = Fraction(place) / factor
        # pytorch_half_pixel takes a single place from the very first one.
        if how == "half_pixel" or (how == "pytorch_half_pixel" and out > 1):
            at = (place + Fraction(1, 2)) / factor - Fraction(1, 2)
        at = min(max(at, Fraction(0)), Fraction(size - 1))
        low = int(at)
        matrix[place, low] += float(1 - (at - low))
        matrix[place, min(low + 1, size - 1)] += float(at - low)
    return matrix


def _take(operation: Operation, translation: Translation, out: int, size: int) -> None:
    """Count a matrix that is about to be made."""
    translation.charge(operation, (out, size))
    if translation.parameters + out * size > translation.limits.parameters:
        operation.refuse(f"{size} places as {out} take too much memory", code="model_too_large")


def _over_both(
    operation: Operation,
    translation: Translation,
    x: Activation,
    rows: NDArray[np.float32],
    columns: NDArray[np.float32],
) -> Activation:
    """One matrix for all places of an image, as ONNX Runtime makes each of them in one sum.

    Two matrices, one after the other, would say that the sum rounds in proportion to what the first
    one gives, which is 0 where rows cancel, while the sum takes its products in any order.
    """
    channels = x.shape[0]
    (out_rows, in_rows), (out_columns, in_columns) = rows.shape, columns.shape
    _take(operation, translation, out_rows * out_columns, in_rows * in_columns)
    # Products of two multiples of 1 / (2 MOST_COPIES): exact.
    weight = translation.weight(operation, np.kron(rows, columns)[:, :, None, None])
    x = translation.emit(operation, Permute(axes=(1, 2, 0)), x)
    x = translation.emit(operation, Reshape(shape=(in_rows * in_columns, channels, 1)), x)
    x = translation.emit(operation, Conv2d(weight), x)
    x = translation.emit(operation, Reshape(shape=(out_rows, out_columns, channels)), x)
    return translation.emit(operation, Permute(axes=(2, 0, 1)), x)


def _along(
    operation: Operation,
    translation: Translation,
    x: Activation,
    matrix: NDArray[np.float32],
    axis: int,
) -> Activation:
    """A matrix applied along an axis of an image: a convolution 1 x 1 with this axis in front."""
    order = (axis, *(other for other in range(3) if other != axis))
    weight = translation.weight(operation, matrix[:, :, None, None])
    x = translation.emit(operation, Permute(axes=order), x)
    x = translation.emit(operation, Conv2d(weight), x)
    back = tuple(order.index(place) for place in range(3))
    return translation.emit(operation, Permute(axes=back), x)


def padded_by_copies(
    operation: Operation,
    translation: Translation,
    x: Activation,
    amounts: dict[int, tuple[int, int]],
    mode: str,
) -> Activation:
    """Padding of axes (without the batch) with the places at their ends (``edge``), with those
    next to the ends, turned round (``reflect``), or with those at the other end (``wrap``)."""
    for axis, (before, after) in amounts.items():
        size = x.shape[axis]
        most = {"edge": MOST_COPIES, "reflect": size - 1, "wrap": size}[mode]
        if max(before, after) > min(most, MOST_COPIES):
            operation.refuse(f"pads of {(before, after)} are not supported on an axis of {size}")
        if mode == "wrap":
            ends = (size - before, size), (0, after)
            around = [
                translation.emit(operation, Slice(axis=axis, start=start, stop=stop), x)
                for start, stop in ends
                if start < stop
            ]
            parts = [*around[: bool(before)], x, *around[bool(before) :]]
            if len(parts) > 1:
                x = translation.emit(operation, Concat(axis=axis), *parts)
            continue
        if mode == "reflect":
            first = [*range(before, 0, -1)]
            last = [size - 2 - index for index in range(after)]
        else:
            first, last = [0] * before, [size - 1] * after
        rows = {
            at: translation.emit(operation, Slice(axis=axis, start=at, stop=at + 1), x)
            for at in sorted({*first, *last})
        }
        parts = [*(rows[at] for at in first), x, *(rows[at] for at in last)]
        if len(parts) > 1:
            x = translation.emit(operation, Concat(axis=axis), *parts)
    return x
