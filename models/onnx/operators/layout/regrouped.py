"""Views of values whose batch axis is not the first one, and whose rows share it with other axes.

torch's MultiheadAttention works on [places, batch, width]: it views it as [places, batch heads,
size] and turns that to [batch heads, places, size]; behind it, it multiplies [places batch, width]
by a matrix. Such a view is row by row where the axes before and behind the batch keep to
themselves, or where some of them, next to it, become one axis with it. It is held with the batch in
front, and these axes behind it (``Activation.merged``; ``turned``: in the file they come first).
"""

from __future__ import annotations

import math
from dataclasses import replace

from models.layers.kinds import Permute, Reshape, Shape
from models.onnx.graph import FIXED_BATCH, Activation, Constant, Operation, Translation

__all__ = ["regrouped", "transposed"]


def regrouped(operation: Operation, translation: Translation, x: Activation) -> Activation:
    """Reshape of a value whose batch is not the file's first axis, or shares one with others."""
    shared = bool(x.merged)
    if shared:
        x = _apart(operation, translation, x)
    at, x = x.batch_axis, replace(x, batch_axis=0)
    sizes, place, times = _sizes(operation, translation, x, at, shared=shared)
    if translation.batch == FIXED_BATCH:
        return _one_row(operation, translation, x, sizes)
    before, after = tuple(sizes[:place]), tuple(sizes[place + 1 :])
    first, last = math.prod(x.shape[:at]), math.prod(x.shape[at:])
    kept = math.prod(before) == first, math.prod(after) == last
    if all(kept) and times in (None, 1):
        return replace(_view(operation, translation, x, (*before, *after)), batch_axis=place)
    joined, rest = divmod(first * last, math.prod(before) * math.prod(after))
    if times not in (None, joined) or times == 1 or rest or not any(kept):
        operation.refuse_batch(f"a view of {x.shape} as {sizes} tears the rows of a batch apart")
    # The axes before the batch, or those behind it, end (or begin) in what becomes one with it.
    x = _view(operation, translation, x, (*before, joined, *after))
    if before:
        count = len(before)
        axes = (count, *range(count), *range(count + 1, len(x.shape)))
        x = translation.emit(operation, Permute(axes=axes), x)
    return replace(x, merged=1, turned=not kept[0], batch_axis=place)


def _apart(operation: Operation, translation: Translation, x: Activation) -> Activation:
    """The same numbers with the batch on an axis of its own, all others in the file's order: an
    axis that it shares with others is these, one after another."""
    count, at, turned = x.merged, x.batch_axis, x.turned
    plain = replace(x, merged=0, turned=False, batch_axis=0)
    if at:
        axes = (*range(count, count + at), *range(count), *range(count + at, len(x.shape)))
        plain = translation.emit(operation, Permute(axes=axes), plain)
    return replace(plain, batch_axis=at + count * turned)


def transposed(
    operation: Operation, translation: Translation, x: Activation, at: int
) -> Activation:
    """Transpose of a value whose merged axis is the file's axis ``at``."""
    rank = x.rank - x.merged
    perm = list(operation.attributes.get("perm", reversed(range(rank))))
    if sorted(perm) != list(range(rank)):
        operation.refuse(f"perm {perm} does not fit rank {rank}", code="shape_mismatch")
    others = [x.merged + axis - (axis > at) for axis in perm if axis != at]
    axes = (*range(x.merged), *others)
    result = x
    if axes != tuple(sorted(axes)):
        result = translation.emit(operation, Permute(axes=axes), x)
    return replace(result, merged=x.merged, turned=x.turned, batch_axis=perm.index(at))


def _sizes(
    operation: Operation, translation: Translation, x: Activation, at: int, *, shared: bool
) -> tuple[list[int], int, int | None]:
    """The sizes asked for, the place of the one that holds the batch, and how many batch sizes that
    one is (1: nothing else is in it), None where it is what the others leave."""
    target = operation.input(1)
    if not isinstance(target, Constant) or target.value.dtype.kind != "i":
        operation.refuse("the shape must be a constant or computed from shapes")
    if target.computed or target.value.shape != target.other.shape:
        operation.refuse_batch("the shape is computed from the batch size")
    pairs = [
        (int(one), int(two))
        for one, two in zip(target.value.reshape(-1), target.other.reshape(-1), strict=True)
    ]
    if not operation.attributes.get("allowzero"):
        copied = [(n, n) for n in x.shape]
        copied.insert(at, translation.batch)
        if any(pair == (0, 0) for pair in pairs[len(copied) :]):
            operation.refuse("it copies an axis that there is not", code="shape_mismatch")
        if shared and (0, 0) in pairs:
            operation.refuse_batch("a view that copies sizes, of an axis that the batch shares")
        pairs = [copied[i] if pair == (0, 0) else pair for i, pair in enumerate(pairs)]
    open_ = [i for i, pair in enumerate(pairs) if pair == (-1, -1)]
    own = [i for i, pair in enumerate(pairs) if translation.times_batch(pair)]
    if translation.batch == FIXED_BATCH:
        return [one for one, _ in pairs], -1, None
    places = open_ or own
    beside = [pair for i, pair in enumerate(pairs) if i not in places]
    if len(places) != 1 or any(one != two or one < 1 for one, two in beside):
        operation.refuse_batch(f"the view as {[one for one, _ in pairs]} moves the batch")
    times = None if open_ else translation.times_batch(pairs[places[0]])
    return [one for one, _ in pairs], places[0], times


def _one_row(
    operation: Operation, translation: Translation, x: Activation, sizes: list[int]
) -> Activation:
    """Of one row all numbers are in one order, wherever its batch axis is."""
    known = -math.prod(sizes)
    if sizes.count(-1) == 1 and known > 0 and math.prod(x.shape) % known == 0:
        sizes[sizes.index(-1)] = math.prod(x.shape) // known
    if any(size < 1 for size in sizes) or math.prod(sizes) != math.prod(x.shape):
        operation.refuse(f"cannot view {x.shape} as {sizes}", code="shape_mismatch")
    if len(sizes) < 2 or sizes[0] != 1:
        return _view(operation, translation, x, tuple(sizes)).unbatched()
    return _view(operation, translation, x, tuple(sizes[1:]))


def _view(
    operation: Operation, translation: Translation, x: Activation, shape: Shape
) -> Activation:
    return x if shape == x.shape else translation.emit(operation, Reshape(shape=shape), x)
