"""ONNX operators that change a value's shape or the order of its axes, and no number.

An activation may have no batch axis in the file: an input [5] or [784], or what is left where the
batch of one row is squeezed away. It is held as one row with a batch axis thought before it
(``Activation.batched``); a result whose first axis has size 1 is a batch of one row again.
"""

from __future__ import annotations

import math
from dataclasses import replace

from models.layers.kinds import Permute, Reshape, Shape
from models.layers.shapes import Expand
from models.onnx.graph import (
    FIXED_BATCH,
    Activation,
    Constant,
    Operation,
    Squares,
    Translation,
    Value,
)
from models.onnx.operators.layout.elsewhere import moved_transpose, moved_unsqueeze
from models.onnx.safety import MOST_AXES

__all__ = ["expand", "flatten", "reshape", "settled", "squeeze", "tile", "transpose", "unsqueeze"]


def settled(operation: Operation, translation: Translation, value: Value) -> Activation:
    """The result of an operator on values without a batch axis, of the shape it has in the file:
    without a batch axis too, or a batch of one row where its first axis is 1."""
    if isinstance(value, Squares) and value.plain is not None:
        value = value.plain
    if not isinstance(value, Activation):
        operation.refuse("this is not supported without a batch axis")
    if len(value.shape) < 2 or value.shape[0] != 1:
        return value.unbatched()
    return translation.emit(operation, Reshape(shape=value.shape[1:]), value)


def _unbatched(operation: Operation, translation: Translation, shape: Shape) -> Activation:
    """The input, a batch of one row, as a value of this shape in the file."""
    x = operation.activation()
    if shape != x.shape:
        x = translation.emit(operation, Reshape(shape=shape), x)
    return settled(operation, translation, x)


def _one_row(translation: Translation) -> bool:
    return translation.batch == FIXED_BATCH


def _view(operation: Operation, translation: Translation, shape: Shape) -> Activation:
    x = operation.activation()
    if shape == x.shape:
        return x
    return translation.emit(operation, Reshape(shape=shape), x)


def expand(operation: Operation, translation: Translation) -> Activation:
    """Expand: axes of size 1 repeated; the batch stays what it is."""
    x, target = operation.activation(), operation.input(1)
    if not isinstance(target, Constant) or target.value.dtype.kind != "i":
        operation.refuse("the sizes must be a constant or computed from shapes")
    if target.value.size > x.rank:
        operation.refuse(f"only positive sizes of at most {x.rank} axes are supported")
    sizes, others = target.value.reshape(-1).tolist(), target.other.reshape(-1).tolist()
    if any(size < 1 for size in sizes):
        operation.refuse(f"only positive sizes of at most {x.rank} axes are supported")
    same = len(sizes) == x.rank and (sizes[0], others[0]) == translation.batch
    if target.computed or sizes[same:] != others[same:]:
        operation.refuse_batch("the sizes depend on the batch size")
    sizes = [1] * (x.rank - len(sizes)) + sizes
    if sizes[0] != 1 and not same:
        operation.refuse_batch("it repeats the batch")
    pairs = list(zip(x.shape, sizes[1:], strict=True))
    if any(size != new and 1 not in (size, new) for size, new in pairs):
        operation.refuse(f"shapes {x.shape} and {sizes[1:]} do not fit", code="shape_mismatch")
    shape = tuple(max(size, new) for size, new in pairs)
    return x if shape == x.shape else translation.emit(operation, Expand(shape=shape), x)


def tile(operation: Operation, translation: Translation) -> Activation:
    """Tile: axes repeated as a whole; never the batch."""
    x, repeats = operation.activation(), operation.integers(1)
    if repeats is None or len(repeats) != x.rank or any(count < 1 for count in repeats):
        operation.refuse(f"repeats {repeats} do not fit rank {x.rank}", code="shape_mismatch")
    if repeats[0] != 1:
        operation.refuse_batch("it repeats the batch")
    for axis, count in enumerate(repeats[1:]):
        if count == 1:
            continue
        before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
        if size > 1:
            x = translation.emit(operation, Reshape(shape=(*before, 1, size, *after)), x)
            x = translation.emit(operation, Expand(shape=(*before, count, size, *after)), x)
            x = translation.emit(operation, Reshape(shape=(*before, count * size, *after)), x)
        else:
            x = translation.emit(operation, Expand(shape=(*before, count, *after)), x)
    return x


def flatten(operation: Operation, translation: Translation) -> Activation:
    """Flatten: the axes before an axis are one, and those from it on."""
    x = operation.activation()
    axis = operation.attributes["axis"]
    if not x.batched:
        rank = len(x.shape)
        if not -rank <= axis <= rank:
            operation.refuse(f"axis {axis} does not exist in rank {rank}", code="shape_mismatch")
        at = axis if axis == rank else axis % rank
        return _view(operation, translation, (math.prod(x.shape[:at]), math.prod(x.shape[at:])))
    axis = axis if axis == x.rank else operation.axis(axis, x.rank)
    if axis == 0 and _one_row(translation):
        return _view(operation, translation, (math.prod(x.shape),))
    if axis == 0 or math.prod(x.shape[: axis - 1]) != 1:
        operation.refuse_batch(f"axis {axis} merges the batch axis with others")
    return _view(operation, translation, (math.prod(x.shape),))


def reshape(operation: Operation, translation: Translation) -> Activation:
    """A view of each sample.

    At every batch size N it must be [N, ...] again, row by row.

    Axis 0 of the target is N itself, 0 (copied) or -1 (what is left), with the sample's size after
    it; or places of the sample are on one axis with it (-1, or k N). A 1 there with the sample's
    size after it fails in ONNX Runtime at any other batch; with a -1 after it, it merges the rows
    of a batch.
    """
    x, target = operation.activation(), operation.input(1)
    if not isinstance(target, Constant) or target.value.dtype.kind != "i":
        operation.refuse("the shape must be a constant or computed from shapes")
    if target.value.size > MOST_AXES:
        operation.refuse(f"a shape of {target.value.size} axes", code="invalid_onnx")
    if target.computed:
        operation.refuse_batch("the shape is computed from the batch size")
    if not x.batched:
        return _view(operation, translation, _resolved(operation, target, x.shape))
    sizes, others = target.value.reshape(-1).tolist(), target.other.reshape(-1).tolist()
    if not sizes or sizes[1:] != others[1:]:
        operation.refuse_batch("the batch size moves away from axis 0")
    copies = not operation.attributes.get("allowzero")
    symbolic = translation.batch != FIXED_BATCH
    copied = sizes[0] == 0 and copies
    is_batch = (sizes[0], others[0]) == translation.batch
    one = not is_batch and sizes[0] == others[0] == 1
    rest = list(sizes[1:])
    for index, size in enumerate(rest):
        if size == 0 and copies and index < len(x.shape):
            rest[index] = x.shape[index]
    total, times = math.prod(x.shape), translation.times_batch((sizes[0], others[0]))
    if times > 1 and total % times:
        operation.refuse_batch(f"{times} rows of each row of {x.shape}")
    total //= max(times, 1)
    if sizes[0] != -1 and rest.count(-1) == 1:
        if symbolic and one:
            operation.refuse_batch(
                f"the shape {sizes} merges all rows of a batch into one",
                hint="write -1 or 0 for the batch axis, or export with batch size 1",
            )
        known = -math.prod(rest)
        if known > 0 and total % known == 0:
            rest[rest.index(-1)] = total // known
    if _one_row(translation) and sizes[0] not in (0, 1) and len(sizes) != len(x.shape) + 1:
        shape = _resolved(operation, target, (1, *x.shape))
        return _unbatched(operation, translation, shape)
    kept = copied or is_batch or one or sizes[0] == others[0] == -1
    row = math.prod(rest)
    if symbolic and others[0] == -1 and rest and row > 0 and total % row == 0:
        times, total = total // row, row
    if symbolic and times > 1 and rest and min(rest) > 0 and row == total:
        return _joined(operation, translation, times, tuple(rest))
    fits = kept and all(size > 0 for size in rest) and math.prod(rest) == total
    if not fits and _one_row(translation) and not (copied or is_batch):
        shape = _resolved(operation, target, (1, *x.shape))
        return _unbatched(operation, translation, shape)
    if not fits:
        reason = f"cannot view [batch, {', '.join(map(str, x.shape))}] as {sizes}"
        if copied or is_batch or (one and math.prod(rest) % total):
            operation.refuse(reason, code="shape_mismatch")
        operation.refuse_batch(f"{reason} and keep the batch apart")
    translation.one_row_only = translation.one_row_only or (symbolic and one)
    return _view(operation, translation, tuple(rest))


def _joined(operation: Operation, translation: Translation, times: int, rest: Shape) -> Activation:
    """A view as [times N, *rest]: the sample's first numbers are on one axis with the batch."""
    return replace(_view(operation, translation, (times, *rest)), merged=1)


def _resolved(operation: Operation, target: Constant, shape: Shape) -> Shape:
    """The sizes that a Reshape asks of a value that has this shape in the file."""
    sizes = [int(size) for size in target.value.reshape(-1)]
    if not operation.attributes.get("allowzero"):
        copied = sizes[: len(shape)]
        sizes[: len(shape)] = [shape[i] if n == 0 else n for i, n in enumerate(copied)]
    known = -math.prod(sizes)
    if sizes.count(-1) == 1 and known > 0 and math.prod(shape) % known == 0:
        sizes[sizes.index(-1)] = math.prod(shape) // known
    if any(size < 1 for size in sizes) or math.prod(sizes) != math.prod(shape):
        operation.refuse(f"cannot view {shape} as {sizes}", code="shape_mismatch")
    return tuple(sizes)


def squeeze(operation: Operation, translation: Translation) -> Activation:
    """Squeeze: the named axes, of size 1, go; without names all such axes, the batch too."""
    x = operation.activation()
    # An empty list names no axes: ONNX Runtime takes it for none given.
    given = (
        operation.integers(1) if operation.opset >= 13 else operation.attributes.get("axes")
    ) or None
    if given is None and x.batched and not _one_row(translation):
        operation.refuse_batch(
            "without axes it removes a batch axis of size 1",
            hint="name the axes to squeeze (torch: flatten(1) in the place of squeeze())",
        )
    sizes = [1, *x.shape]
    if given is None:
        axes = tuple(axis for axis, size in enumerate(sizes) if size == 1 and (axis or x.batched))
    else:
        axes = operation.axes(given, x.rank)
    if 0 in axes and not _one_row(translation):
        operation.refuse_batch("it removes the batch axis")
    if any(sizes[axis] != 1 for axis in axes):
        operation.refuse(
            f"cannot squeeze axes {axes} of [batch, {', '.join(map(str, x.shape))}]",
            code="shape_mismatch",
        )
    kept = tuple(size for axis, size in enumerate(sizes) if axis and axis not in axes)
    return (_unbatched if 0 in axes else _view)(operation, translation, kept)


def unsqueeze(operation: Operation, translation: Translation) -> Activation:
    """Unsqueeze: axes of size 1 more."""
    x = operation.activation()
    given = operation.integers(1) if operation.opset >= 13 else operation.attributes["axes"]
    rank = x.rank + len(given or ())
    axes = operation.axes(given or (), rank)
    if 0 in axes:
        return moved_unsqueeze(operation, translation, 0)
    old = iter(x.shape)
    shape = (1 if axis in axes else next(old) for axis in range(1, rank))
    return _view(operation, translation, tuple(shape))


def transpose(operation: Operation, translation: Translation) -> Activation:
    """Transpose: the axes in another order; without ``perm`` turned round."""
    x = operation.activation()
    if x.batched:
        return moved_transpose(operation, translation, 0)
    rank = len(x.shape)
    axes = list(operation.attributes.get("perm", reversed(range(rank))))
    if sorted(axes) != list(range(rank)):
        operation.refuse(f"perm {axes} does not fit rank {rank}", code="shape_mismatch")
    if axes == sorted(axes):
        return x
    return translation.emit(operation, Permute(axes=axes), x)
