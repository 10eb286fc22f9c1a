"""ONNX operators that move numbers between places and channels, or take them several times.

Moves are reshapes and permutations; copies are slices that are joined again: no number changes.
"""

from __future__ import annotations

from models.layers.joins import Concat, Slice
from models.layers.kinds import Permute, Reshape
from models.onnx.graph import Activation, Operation, Translation

__all__ = ["depth_to_space", "padded_by_copies", "resize", "space_to_depth"]

#: Copies of one row that an operator may ask for.
MOST_COPIES = 64
#: How Resize finds the place that it copies: for whole factors they all repeat each place.
_REPEATING = (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"))


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
    """Resize and Upsample to the nearest place, by whole factors: each place several times."""
    x, attributes = operation.activation(), operation.attributes
    words = {
        key: value.decode(errors="replace")
        for key, value in attributes.items()
        if isinstance(value, bytes)
    }
    how = (
        words.get("coordinate_transformation_mode", "asymmetric"),
        words.get("nearest_mode", "floor"),
    )
    plain = words.get("mode") == "nearest" and attributes.get("axes") is None
    if (
        not plain
        or how not in _REPEATING
        or words.get("keep_aspect_ratio_policy", "stretch") != ("stretch")
    ):
        operation.refuse(
            f"mode {words.get('mode')!r} with {how} is not supported: only nearest, asymmetric "
            "with floor or half_pixel with round_prefer_floor"
        )
    if operation.op_type == "Upsample" and operation.opset < 9:
        given = [float(scale) for scale in attributes["scales"]]
    else:
        array = operation.constant(1 if operation.opset < 11 else 2)
        given = [] if array is None else [float(scale) for scale in array.reshape(-1)]
    if len(given) != x.rank or given[0] != 1 or any(n != int(n) or n < 1 for n in given):
        operation.refuse(f"scales {given[:8]} are not supported: a whole number for every axis")
    if max(given) > MOST_COPIES:
        operation.refuse(f"a scale above {MOST_COPIES} is not supported")
    for axis, scale in enumerate(map(int, given[1:])):
        if scale > 1:
            shape = x.shape
            view = Reshape(shape=(*shape[: axis + 1], 1, *shape[axis + 1 :]))
            parts = [translation.emit(operation, view, x)] * scale
            x = translation.emit(operation, Concat(axis=axis + 1), *parts)
            shape = (*shape[:axis], shape[axis] * scale, *shape[axis + 1 :])
            x = translation.emit(operation, Reshape(shape=shape), x)
    return x


def padded_by_copies(
    operation: Operation,
    translation: Translation,
    x: Activation,
    amounts: dict[int, tuple[int, int]],
    mode: str,
) -> Activation:
    """Padding of axes (without the batch) with the places at their ends (``edge``), or with those
    next to the ends, turned round (``reflect``)."""
    for axis, (before, after) in amounts.items():
        size = x.shape[axis]
        if max(before, after) > MOST_COPIES or (mode == "reflect" and max(before, after) >= size):
            operation.refuse(f"pads of {(before, after)} are not supported on an axis of {size}")
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
