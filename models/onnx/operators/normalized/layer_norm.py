"""Layer normalisation, and the one by root mean squares: operators, and nodes that amount to them.

Exporters write ReduceMean, Sub, Pow or Mul, ReduceMean, Add, Sqrt, Div, and a scale and a shift
after it; in the first and the last of these nodes numbers less their mean, and their quotient by
the root of their mean square, are recognised. What is on the way to the root is read by
``models.onnx.operators.euclidean``.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.layers.joins import ReduceMean
from models.layers.kinds import AvgPool2d, Multiply, Shape, Shift
from models.layers.normalization import Centre, Standardize
from models.onnx.graph import Activation, Operation, Squares, Translation

__all__ = [
    "alike",
    "centred",
    "is_mean",
    "layer_normalization",
    "less_mean",
    "mean_of",
    "rms_normalization",
    "scaled",
    "standardize",
    "standardized",
]


def layer_normalization(operation: Operation, translation: Translation) -> Activation:
    """Over the last axes, with scale and shift; epsilon from 1e-12 to 1000.

    Its further outputs, mean and deviation, are not taken.
    """
    x, axes = operation.activation(), _last_axes(operation)
    if any(translation.uses[name] for name in operation.outputs[1:] if name):
        operation.refuse("only its first output is supported, not mean and deviation")
    # Of its own: a mean that nodes compute may be rounded in another way.
    numbers = translation.emit(operation, Centre(axes=axes), x)
    result = standardize(operation, translation, axes, numbers, x)
    return _scaled(operation, translation, result)


def rms_normalization(operation: Operation, translation: Translation) -> Activation:
    """x / sqrt(mean of x^2 + epsilon) over the last axes, with a scale; epsilon from 1e-12."""
    x, axes = operation.activation(), _last_axes(operation)
    return _scaled(operation, translation, standardize(operation, translation, axes, x, x))


def centred(
    operation: Operation, translation: Translation, x: Activation, y: Activation
) -> Activation | None:
    """x - y as x less its mean, where y is that; else None."""
    found = mean_of(translation, y)
    if found is None or found[0] != x:
        return None
    return _centre(operation, translation, x, y, found[1])


def mean_of(translation: Translation, y: Activation) -> tuple[Activation, Shape] | None:
    """(x, axes) where y is the mean of x over these axes, kept with size 1; else None."""
    layer, sources = translation.origins.get(y.name, (None, ()))
    if len(sources) != 1:
        return None
    (x,) = sources
    if isinstance(layer, ReduceMean) and layer.keepdims:
        return x, layer.axes
    # Padding would move the window: part of the image would be left out of the mean.
    pooled = isinstance(layer, AvgPool2d) and layer.kernel == x.shape[1:] and not any(layer.padding)
    if pooled and y.shape == (x.shape[0], 1, 1) and len(x.shape) == 3:
        return x, (1, 2)
    return None


def standardized(
    operation: Operation, translation: Translation, x: Activation, y: Activation
) -> Activation | None:
    """x / y, where y is sqrt(mean of x^2 + epsilon) over kept axes; else None.

    The mean may be one of x less another mean of the same numbers: their variance.
    """
    sums = translation.roots.get(y.name)
    if sums is None or not is_mean(sums) or y.shape != sums.shape:
        return None
    beside = alike(translation, x, sums.base, tuple(sums.axes))
    if beside is None:
        return None
    return standardize(operation, translation, sums.axes, x, beside, eps=float(sums.shift))


def is_mean(sums: Squares) -> bool:
    """Whether it is a mean of squares, and a number, over axes that are kept."""
    kept = tuple(1 if axis in sums.axes else size for axis, size in enumerate(sums.base.shape))
    count = math.prod(sums.base.shape[axis] for axis in sums.axes)
    return bool(sums.axes) and sums.shape == kept and sums.factor == Fraction(1, count)


def less_mean(translation: Translation, x: Activation, axes: Shape) -> Activation | None:
    """y, where x is y less its mean over these axes; else None."""
    layer, sources = translation.origins.get(x.name, (None, ()))
    return sources[0] if isinstance(layer, Centre) and layer.axes == tuple(axes) else None


def alike(
    translation: Translation, x: Activation, base: Activation, axes: Shape
) -> Activation | None:
    """What x is divided beside where it is divided by the root of the mean square of ``base``: x
    itself, or numbers that both are less a mean of; else None."""
    if x == base:
        return x
    source = less_mean(translation, x, axes)
    return source if source is not None and source == less_mean(translation, base, axes) else None


def _last_axes(operation: Operation) -> tuple[int, ...]:
    """All axes from the operator's own on, without the batch."""
    rank = operation.activation().rank
    if operation.attributes.get("stash_type", 1) != 1:
        operation.refuse("only computation in float32 is supported (stash_type 1)")
    axis = operation.axis(operation.attributes["axis"], rank)
    if axis == 0:
        operation.refuse_batch("it normalises over the batch axis")
    return tuple(range(axis - 1, rank - 1))


def _centre(
    operation: Operation, translation: Translation, x: Activation, mean: Activation, axes: Shape
) -> Activation:
    """x less its mean. Exporters may write that difference twice, which is one value; of two means
    each may be rounded in its own way."""
    if mean not in translation.centred:
        translation.centred[mean] = translation.emit(operation, Centre(axes=axes), x)
    return translation.centred[mean]


def standardize(
    operation: Operation,
    translation: Translation,
    axes: Shape,
    x: Activation,
    beside: Activation,
    *,
    eps: float | None = None,
) -> Activation:
    """x over the root of its mean square, by the operator's epsilon or another one."""
    try:
        layer = Standardize(
            axes=axes, eps=float(operation.attributes["epsilon"]) if eps is None else eps
        )
    except ModelError as error:
        operation.refuse(str(error))
    return translation.emit(operation, layer, x, beside)


def _scaled(operation: Operation, translation: Translation, x: Activation) -> Activation:
    """Times the second input, plus the third."""
    scale, shift = (_broadcast(operation, index, x) for index in (1, 2))
    return scaled(operation, translation, x, scale, shift)


def scaled(
    operation: Operation,
    translation: Translation,
    x: Activation,
    scale: NDArray[np.float32] | None,
    shift: NDArray[np.float32] | None,
) -> Activation:
    """scale x + shift, of constants that broadcast to the sample; what changes nothing is left
    out."""
    if scale is not None and not (scale == 1).all():
        x = translation.emit(operation, Multiply(translation.weight(operation, scale)), x)
    if shift is not None and shift.any():
        x = translation.emit(operation, Shift(translation.weight(operation, shift)), x)
    return x


def _broadcast(operation: Operation, index: int, x: Activation) -> NDArray[np.float32] | None:
    """A constant that broadcasts to the sample."""
    array = operation.constant(index)
    if array is None:
        return None
    if array.ndim == x.rank and array.shape[0] == 1:
        array = array[0]
    try:
        fits = np.broadcast_shapes(array.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        operation.refuse(
            f"a constant of shape {array.shape} does not broadcast to {x.shape}",
            code="shape_mismatch",
        )
    return array
