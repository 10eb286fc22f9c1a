"""Euclidean norms as ONNX files write them: ReduceL2, LpPool, or a root of a sum of squares.

Between the square and the root there is a ``Squares``, which only some operators take: sums and
means over axes or windows, positive factors, a small number that is added, and what exporters write
around them (sign, absolute value, maximum with 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import torch
from onnx import TensorProto

from models.layers.curves import Power, Sqrt
from models.layers.euclidean import L2Pool2d
from models.layers.kinds import Multiply, Permute, Reshape
from models.onnx.graph import Activation, Normaliser, Operation, Squares, Translation, Value
from models.onnx.operators.curved.steep import inverse
from models.onnx.operators.layout.axes import reduced_axes
from models.onnx.operators.normalized.layer_norm import is_mean, mean_of

__all__ = [
    "SQUARE_OPERATORS",
    "cubed",
    "lengths",
    "lp_pool",
    "power",
    "reduce_l2",
    "root_of_squares",
    "squared",
]

#: Least factor that sums of squares may have anywhere on the way to their root; the largest is one
#: over it. The rules of the norm (``workers.verification.layers.euclidean``) count on it: further
#: ones would let squares overflow, or be lost, where plain ones do not.
LEAST = Fraction(1, 2**20)
#: Largest number that is added to squares of such a factor.
LARGEST_SHIFT = 2**40
#: Most operators on that way, of which each rounds once or twice: the rules count on that too.
MOST_STEPS = 5


def squared(operation: Operation, translation: Translation, x: Activation) -> Squares:
    """Each number's square."""
    return Squares(x, x.shape, plain=translation.emit(operation, Power(exponent=2), x))


def cubed(
    operation: Operation, translation: Translation, x: Activation, y: Activation
) -> Activation | None:
    """x^3 where one is the square of the other; else None."""
    for base, value in ((x, y), (y, x)):
        layer, sources = translation.origins.get(value.name, (None, ()))
        if isinstance(layer, Power) and layer.exponent == 2 and sources == (base,):
            return translation.emit(operation, Power(exponent=3), base)
    return None


def power(operation: Operation, translation: Translation) -> Value:
    """Pow with the exponent 2 or 3 (1: nothing), 1/2, -1/2 or -1, of an activation."""
    x = operation.activation()
    exponent = _number(operation, 1, x.rank)
    if exponent == 2.0:
        return squared(operation, translation, x)
    if exponent == 1.0:
        return x
    if exponent in (0.5, -0.5):
        x = translation.emit(operation, Sqrt(), x)
    if exponent in (-0.5, -1.0):
        x = inverse(operation, translation, x)
    if exponent in (0.5, -0.5, -1.0):
        return x
    if exponent != 3.0:
        operation.refuse(
            f"the exponent {exponent} is not supported: only 1, 2, 3, 1/2, -1/2 and -1 are"
        )
    return translation.emit(operation, Power(exponent=3), x)


def reduce_l2(operation: Operation, translation: Translation) -> Value:
    """ReduceL2 over axes other than the batch."""
    x, axes = operation.activation(), reduced_axes(operation)
    squares = Squares(x, x.shape)
    sums = _over_axes(operation, squares, axes) if axes else squares
    return _root(operation, translation, sums)


def lengths(operation: Operation, translation: Translation, x: Activation) -> Activation:
    """Euclidean norms over the last axis, which is kept."""
    sums = _over_axes(operation, Squares(x, x.shape), [len(x.shape) - 1], kept=True)
    return _as_layers(operation, translation, sums)


def lp_pool(operation: Operation, translation: Translation) -> Value:
    """LpPool and GlobalLpPool of order 2, without padding."""
    if operation.attributes["p"] != 2:
        operation.refuse(f"p = {operation.attributes['p']} is not supported: only 2 is")
    x = operation.activation()
    if len(x.shape) != 3:
        operation.refuse(f"only images [batch, c, h, w] are supported, not rank {x.rank}")
    squares = Squares(x, x.shape)
    if operation.op_type == "GlobalLpPool":
        return _root(operation, translation, _over_axes(operation, squares, [1, 2], kept=True))
    return _root(operation, translation, _over_windows(operation, squares))


def root_of_squares(operation: Operation, translation: Translation) -> Activation | Normaliser:
    """Sqrt, or Pow with the exponent 1/2, of a sum of squares."""
    sums = _squares(operation)
    if operation.op_type == "Pow" and _number(operation, 1, len(sums.shape) + 1) != 0.5:
        operation.refuse("only the square root of a sum of squares is supported")
    return _root(operation, translation, sums)


def _squares(operation: Operation) -> Squares:
    value = next(value for value in operation.inputs if isinstance(value, Squares))
    if value.sign_only:
        operation.refuse("the sign of a sum of squares is only supported as a factor of that sum")
    return value


def _number(operation: Operation, index: int, rank: int) -> float:
    """The one number that a constant input is, beside a value of so many axes (it may add none)."""
    array = operation.constant(index)
    if array is None or array.size != 1 or array.ndim > rank or array.dtype.kind != "f":
        operation.refuse(f"input {index} must be one number on the way to a Euclidean norm")
    value = float(array.reshape(())[()])
    if not math.isfinite(value):
        operation.refuse(f"input {index} is {value}", code="non_finite_weights")
    return value


def _constant_beside(operation: Operation, sums: Squares) -> float:
    """The one number that a sum of squares is combined with."""
    at = 1 if isinstance(operation.input(0), Squares) else 0
    if isinstance(operation.input(at), Activation | Squares):
        operation.refuse("a sum of squares is only combined with numbers, on the way to its root")
    return _number(operation, at, len(sums.shape) + 1)


def _unsummed(operation: Operation, sums: Squares) -> None:
    if sums.axes or sums.kernel or sums.shift:
        operation.refuse("squares are summed once only, on the way to a Euclidean norm")


def _over_axes(
    operation: Operation, sums: Squares, axes: list[int], *, kept: bool | None = None
) -> Squares:
    _unsummed(operation, sums)
    kept = bool(operation.attributes["keepdims"]) if kept is None else kept
    sizes = enumerate(sums.shape)
    shape = tuple(1 if a in axes else n for a, n in sizes if kept or a not in axes)
    return replace(sums, axes=tuple(axes), shape=shape)


def _over_windows(operation: Operation, sums: Squares) -> Squares:
    """Sums over the windows of a pool, without padding."""
    _unsummed(operation, sums)
    attributes, shape = operation.attributes, sums.shape
    kernel = tuple(attributes["kernel_shape"])
    stride = tuple(attributes.get("strides", (1, 1)))
    plain = not any(attributes.get("pads", ())) and not attributes.get("ceil_mode")
    plain = plain and set(attributes.get("dilations", (1,))) == {1}
    padding = attributes.get("auto_pad", b"NOTSET")
    if len(shape) != 3 or len(kernel) != 2 or len(stride) != 2 or min(*kernel, *stride) < 1:
        operation.refuse("only windows on images [batch, c, h, w] are supported")
    if not plain or padding not in (b"NOTSET", b"VALID"):
        operation.refuse("a Euclidean norm over padded or dilated windows is not supported")
    grid = tuple((n - k) // s + 1 for n, k, s in zip(shape[1:], kernel, stride, strict=True))
    if min(grid) < 1:
        operation.refuse(f"a window of {kernel} does not fit {shape}", code="shape_mismatch")
    pair = (int(kernel[0]), int(kernel[1]))
    # A single window has no step.
    steps = tuple(
        max(s, k) if n == 1 else int(s) for s, k, n in zip(stride, pair, grid, strict=True)
    )
    if any(s < k for s, k in zip(steps, pair, strict=True)):
        operation.refuse("Euclidean norms over windows that overlap are not supported")
    return replace(sums, kernel=pair, stride=(steps[0], steps[1]), shape=(shape[0], *grid))


def _pooled(operation: Operation, translation: Translation) -> Squares:
    sums = _squares(operation)
    if operation.op_type == "GlobalAveragePool":
        if len(sums.shape) != 3:
            operation.refuse("only images [batch, c, h, w] are supported")
        count = math.prod(sums.shape[1:])
        sums = _over_axes(operation, sums, [1, 2], kept=True)
        return _times(operation, sums, Fraction(1, count))
    sums = _over_windows(operation, sums)
    return _times(operation, sums, Fraction(1, math.prod(sums.kernel)))


def _summed(operation: Operation, translation: Translation) -> Squares:
    sums = _squares(operation)
    axes = reduced_axes(operation, len(sums.shape) + 1)
    if not axes:
        return sums
    count = math.prod(sums.shape[axis] for axis in axes)
    found = _over_axes(operation, sums, axes)
    return (
        _times(operation, found, Fraction(1, count)) if operation.op_type == "ReduceMean" else found
    )


def _times(operation: Operation, sums: Squares, factor: Fraction) -> Squares:
    product, shift = sums.factor * factor, sums.shift * factor
    return _moderate(operation, replace(sums, factor=product, shift=shift))


def _moderate(operation: Operation, sums: Squares) -> Squares:
    """One operator more. Refuse too many, and factors and shifts that are no ordinary numbers."""
    if not LEAST <= sums.factor <= 1 / LEAST or sums.shift > LARGEST_SHIFT:
        operation.refuse("a factor on the way to a Euclidean norm is too large or too small")
    if sums.steps >= MOST_STEPS:
        operation.refuse(
            f"more than {MOST_STEPS} factors, means and sums on the way to a Euclidean norm"
        )
    return replace(sums, steps=sums.steps + 1)


def _scaled(operation: Operation, translation: Translation) -> Squares:
    first, second = operation.input(0), operation.input(1)
    if isinstance(first, Squares) and isinstance(second, Squares):
        # The sign of a sum of squares times the sum.
        signed = replace(first, sign_only=False) == replace(second, sign_only=False)
        if first.sign_only == second.sign_only or not signed:
            operation.refuse("products of two sums of squares are not supported")
        return _moderate(operation, replace(first, sign_only=False))
    sums = _squares(operation)
    number = _constant_beside(operation, sums)
    if operation.op_type == "Div" and not isinstance(first, Squares):
        operation.refuse("a division by a sum of squares is not supported")
    if not number > 0.0:
        operation.refuse("only positive factors are supported on the way to a Euclidean norm")
    factor = Fraction(number)
    return _times(operation, sums, 1 / factor if operation.op_type == "Div" else factor)


def _shifted(operation: Operation, translation: Translation) -> Squares:
    sums = _squares(operation)
    number = _constant_beside(operation, sums)
    if number < 0.0:
        operation.refuse("only numbers >= 0 are added on the way to a Euclidean norm")
    return _moderate(operation, replace(sums, shift=sums.shift + Fraction(number)))


def _kept(operation: Operation, translation: Translation) -> Squares:
    """Absolute value, maximum with 0: a sum of squares is not negative."""
    return _squares(operation)


def _cast(operation: Operation, translation: Translation) -> Squares:
    if operation.attributes["to"] != TensorProto.FLOAT:
        operation.refuse("only a cast to float is supported on the way to a Euclidean norm")
    return _squares(operation)


def _sign(operation: Operation, translation: Translation) -> Squares:
    sums = _squares(operation)
    if sums.centred:
        operation.refuse("the sign of a variance is not supported")
    return replace(sums, sign_only=True)


def _variance(operation: Operation, translation: Translation) -> Squares:
    """Mean of squares less the squared mean of the same numbers."""
    first, second = operation.input(0), operation.input(1)
    if not (isinstance(first, Squares) and isinstance(second, Squares)):
        operation.refuse("only a squared mean is taken from a sum of squares")
    plain = replace(second, base=first.base, shape=first.shape) == Squares(first.base, first.shape)
    found = mean_of(translation, second.base)
    same = found == (first.base, first.axes) and second.shape == first.shape
    # Before the difference nothing but the mean may be rounded: the variance may cancel away.
    fresh = not first.shift and not first.centred and not first.sign_only and first.steps == 1
    if not (plain and same and is_mean(first) and fresh):
        operation.refuse("only a squared mean of the same numbers is taken from a mean of squares")
    return replace(first, centred=True)


def _root(operation: Operation, translation: Translation, sums: Squares) -> Activation | Normaliser:
    """The root as a layer; what it is made of is kept, for numbers that are divided by it."""
    if sums.centred:
        # No layer computes it as the file does.
        if not is_mean(sums):
            operation.refuse("a factor on the root of a variance is not supported")
        return Normaliser(sums.base, sums.axes, float(sums.shift), True, sums.shape)
    result = _as_layers(operation, translation, sums)
    translation.roots[result.name] = sums
    return result


def _as_layers(operation: Operation, translation: Translation, sums: Squares) -> Activation:
    """root(factor * sum + shift) = root(factor) * root(sum + shift / factor)."""
    x, eps = sums.base, float(sums.shift / sums.factor)
    if sums.kernel:
        pool = L2Pool2d(kernel=sums.kernel, stride=sums.stride, eps=eps)
        result = translation.emit(operation, pool, x)
    else:
        axes = list(sums.axes)
        order = [axis for axis in range(len(x.shape)) if axis not in axes] + axes
        count = math.prod(x.shape[axis] for axis in axes)
        if order != sorted(order):
            x = translation.emit(operation, Permute(axes=order), x)
        rows = (1, math.prod(x.shape) // count, count)
        if x.shape != rows:
            x = translation.emit(operation, Reshape(shape=rows), x)
        pool = L2Pool2d(kernel=(1, count), stride=(1, count), eps=eps)
        result = translation.emit(operation, pool, x)
        if result.shape != sums.shape:
            result = translation.emit(operation, Reshape(shape=sums.shape), result)
    if sums.factor == 1:
        return result
    scale = torch.tensor(math.sqrt(sums.factor), dtype=torch.float32)
    return translation.emit(operation, Multiply(scale), result)


def _turned(operation: Operation, translation: Translation) -> Squares:
    """Transpose of squares that are not yet summed: squares of the numbers in that order."""
    sums = _squares(operation)
    base, rank = sums.base, len(sums.shape) + 1
    perm = list(operation.attributes.get("perm", reversed(range(rank))))
    plain = base.batched and not base.batch_axis and not base.merged
    if sums.axes or sums.kernel or sums.centred or not plain or sums.shape != base.shape:
        operation.refuse("only squares that are not yet summed are turned")
    if sorted(perm) != list(range(rank)) or perm[0] != 0:
        operation.refuse(f"perm {perm} moves the batch, or does not fit rank {rank}")
    axes = tuple(axis - 1 for axis in perm[1:])
    base = translation.emit(operation, Permute(axes=axes), base)
    return replace(sums, base=base, shape=base.shape, plain=None)


#: What may stand between squares and their root.
SQUARE_OPERATORS: dict[str, Callable[[Operation, Translation], Value]] = {
    "Abs": _kept,
    "Add": _shifted,
    "AveragePool": _pooled,
    "Cast": _cast,
    "Div": _scaled,
    "GlobalAveragePool": _pooled,
    "Identity": _kept,
    "Mul": _scaled,
    "Pow": root_of_squares,
    "ReduceMean": _summed,
    "ReduceSum": _summed,
    "Relu": _kept,
    "Sign": _sign,
    "Sqrt": root_of_squares,
    "Sub": _variance,
    "Transpose": _turned,
}
