"""ONNX activations beside Relu: Clip, Sigmoid, Softplus, Tanh, steps, and maxima and minima.

Limits by one number become one layer, however they are written: Relu, Clip, Max and Min in a row
are one Clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.layers.activations import (
    Abs,
    AtLeast,
    AtMost,
    Clip,
    ReLUTheta,
    Sigmoid,
    Sign,
    Softplus,
    Step,
    Tanh,
)
from models.layers.joins import Maximum, Minimum
from models.layers.kinds import Add, Layer, LeakyReLU, Multiply, PReLU, ReLU, Shift
from models.onnx.graph import Activation, Operation, Translation
from models.onnx.operators.arithmetic import (
    MINUS_ONE,
    broadcasts_to,
    enlarged,
    joined,
    sample_constant,
)

__all__ = [
    "absolute",
    "bent",
    "clamped",
    "clip",
    "hard_sigmoid",
    "leaky_relu",
    "maximum",
    "minimum",
    "prelu",
    "sigmoid",
    "sign",
    "softplus",
    "stepped",
    "tanh",
]

#: Exporters write "no bound" as the largest number of float32.
_LARGEST = float(np.finfo(np.float32).max)


def absolute(operation: Operation, translation: Translation) -> Activation:
    """Abs, elementwise."""
    return translation.emit(operation, Abs(), operation.activation())


def hard_sigmoid(operation: Operation, translation: Translation) -> Activation:
    """min(max(alpha x + beta, 0), 1): a product, a sum and a Clip."""
    x = operation.activation()
    for kind, name in ((Multiply, "alpha"), (Shift, "beta")):
        value = np.asarray(operation.attributes[name], dtype=np.float32)
        x = translation.emit(operation, kind(translation.weight(operation, value)), x)
    return clamped(operation, translation, x, 0.0, 1.0)


def leaky_relu(operation: Operation, translation: Translation) -> Activation:
    """Any finite slope below 0."""
    slope = np.asarray(operation.attributes["alpha"], dtype=np.float32)
    return bent(operation, translation, operation.activation(), slope)


def prelu(operation: Operation, translation: Translation) -> Activation:
    """PRelu with any finite slopes, one for all or one for each channel or number."""
    x, array = operation.activation(), operation.constant(1)
    assert array is not None
    slopes = sample_constant(operation, array, x)
    if not broadcasts_to(slopes.shape, x.shape):
        operation.refuse(f"slopes of shape {array.shape} do not fit", code="shape_mismatch")
    return bent(operation, translation, x, slopes)


def bent(
    operation: Operation, translation: Translation, x: Activation, slopes: NDArray[np.float32]
) -> Activation:
    """x where x >= 0, slopes x elsewhere.

    One LeakyReLU where one slope from 0 to 1 is for all, one PReLU where all are from 0 to 1, else
    max(x, 0) - slopes max(-x, 0), of which one part is 0 and the other rounds as slopes x does.
    """
    tensor = translation.weight(operation, slopes)
    first = float(slopes.flat[0])
    if (slopes == slopes.flat[0]).all() and 0.0 <= first <= 1.0:
        return translation.emit(operation, LeakyReLU(slope=first), x)
    if ((slopes >= 0.0) & (slopes <= 1.0)).all():
        return translation.emit(operation, PReLU(tensor), x)
    minus = translation.weight(operation, MINUS_ONE)
    falling = translation.emit(operation, Multiply(minus), x)
    falling = translation.emit(operation, ReLU(), falling)
    falling = translation.emit(operation, Multiply(-tensor), falling)
    return translation.emit(operation, Add(), translation.emit(operation, ReLU(), x), falling)


def sigmoid(operation: Operation, translation: Translation) -> Activation:
    """Sigmoid, elementwise."""
    return translation.emit(operation, Sigmoid(), operation.activation())


def softplus(operation: Operation, translation: Translation) -> Activation:
    """Softplus, elementwise. Another beta than 1 is written as operators around it."""
    return translation.emit(operation, Softplus(), operation.activation())


def tanh(operation: Operation, translation: Translation) -> Activation:
    """Tanh, elementwise."""
    return translation.emit(operation, Tanh(), operation.activation())


def sign(operation: Operation, translation: Translation) -> Activation:
    """-1, 0 or 1; the Sign of a Sign and a number between -1 and 1 is one step, -1 or 1 at 0."""
    x = operation.activation()
    moved, (between, *_) = translation.origins.get(x.name, (None, (x,)))
    inner, (before, *_) = translation.origins.get(between.name, (None, (x,)))
    if isinstance(moved, Shift) and isinstance(inner, Sign) and before.shape == x.shape:
        value = moved.value.detach()
        for side in (-1, 1):
            if bool(((side * value > 0) & (side * value < 1)).all()):
                layer = Sign(at_zero=inner.at_zero or side)
                return translation.emit(operation, layer, before)
    return translation.emit(operation, Sign(), x)


def stepped(kind: Callable[[], Step], text: str) -> Callable[[Operation, Translation], Activation]:
    """The translator of a step without attributes; text: what the documentation says of it."""

    def translate(operation: Operation, translation: Translation) -> Activation:
        return translation.emit(operation, kind(), operation.activation())

    translate.__doc__ = text
    return translate


def clip(operation: Operation, translation: Translation) -> Activation:
    """Clip with bounds as attributes (opset below 11) or as constant inputs; either may lack."""
    if operation.opset < 11:
        low, high = float(operation.attributes["min"]), float(operation.attributes["max"])
    else:
        low, high = _bound(operation, 1, -math.inf), _bound(operation, 2, math.inf)
    if math.isnan(low) or math.isnan(high):
        operation.refuse("a bound is NaN", code="non_finite_weights")
    return clamped(
        operation,
        translation,
        operation.activation(),
        None if low <= -_LARGEST else low,
        None if high >= _LARGEST else high,
    )


def _bound(operation: Operation, index: int, default: float) -> float:
    array = operation.constant(index)
    if array is None:
        return default
    if array.dtype != np.float32 or array.size != 1:
        operation.refuse(f"input {index} must be one float32 number", code="unsupported_dtype")
    return float(array.reshape(())[()])


def clamped(
    operation: Operation,
    translation: Translation,
    x: Activation,
    low: float | None,
    high: float | None,
) -> Activation:
    """min(max(x, low), high), in one layer with the bounds that x already comes from."""
    if low is not None and high is not None and low > high:
        operation.refuse(f"the bounds [{low}, {high}] are empty", code="invalid_network")
    for bound in (low, high):
        if bound is not None and math.isinf(bound):
            operation.refuse(f"a bound is {bound}", code="non_finite_weights")
    layer, sources = translation.origins.get(x.name, (None, ()))
    if isinstance(layer, Clip | ReLU):
        inner_low, inner_high = (layer.low, layer.high) if isinstance(layer, Clip) else (0.0, None)
        low, high = _both(inner_low, low, high), _both(inner_high, low, high, upper=True)
        (x,) = sources
    if low is None and high is None:
        return x
    plain = low == 0 and high is None
    return translation.emit(operation, ReLU() if plain else Clip(low=low, high=high), x)


def _both(
    inner: float | None, low: float | None, high: float | None, *, upper: bool = False
) -> float | None:
    """The inner bound on one side, clamped by the outer ones: the bound of both in a row."""
    if inner is None:
        return high if upper else low
    if low is not None:
        inner = max(inner, low)
    return inner if high is None else min(inner, high)


def maximum(operation: Operation, translation: Translation) -> Activation:
    """Max of any number of nodes and constants."""
    return _extremum(operation, translation, Maximum, upper=False)


def minimum(operation: Operation, translation: Translation) -> Activation:
    """Min of any number of nodes and constants."""
    return _extremum(operation, translation, Minimum, upper=True)


def _extremum(
    operation: Operation, translation: Translation, kind: type[Layer], *, upper: bool
) -> Activation:
    """Nodes two by two, then the constants; ``upper``: constants bound from above (Min)."""
    nodes = [value for value in operation.inputs if isinstance(value, Activation)]
    result = nodes[0]
    for node in nodes[1:]:
        result = joined(operation, translation, kind(), result, node)
    for index, value in enumerate(operation.inputs):
        if not isinstance(value, Activation):
            array = operation.constant(index)
            assert array is not None
            result = _bounded(operation, translation, result, array, upper=upper)
    return result


def _bounded(
    operation: Operation,
    translation: Translation,
    x: Activation,
    array: NDArray[np.float32],
    *,
    upper: bool,
) -> Activation:
    """min(x, array) or max(x, array)."""
    array = sample_constant(operation, array, x)
    x = enlarged(operation, translation, x, array.shape)
    if not broadcasts_to(array.shape, x.shape):
        operation.refuse(
            f"a constant of shape {array.shape} does not broadcast to {x.shape}",
            code="shape_mismatch",
        )
    value = translation.weight(operation, array)
    if bool((array == array.flat[0]).all()):
        one = float(array.flat[0])
        low, high = (None, one) if upper else (one, None)
        return clamped(operation, translation, x, low, high)
    layer, sources = translation.origins.get(x.name, (None, ()))
    if upper and isinstance(layer, ReLU) and bool((array >= 0).all()):
        return translation.emit(operation, ReLUTheta(value), sources[0])
    return translation.emit(operation, AtMost(value) if upper else AtLeast(value), x)
