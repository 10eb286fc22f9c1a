"""Normalisation written in parts: a factor c = gain / s computed first, then x c and the rest.

RMS normalisation as x * (1 / s); layer and group normalisation of Keras and TensorFlow as
x c + (bias - m c), with the variance as a mean of squares of x - m, or as E[x^2] - m^2. Until the
sum (or the product with x - m) the parts are no layers but ``Normaliser`` values.

What is deployed rounds as InstanceNormalization does (``group_norm``): by some u (|x| + |m|) |c|
beside the rest, as long as both products are made with one and the same c; m may be any mean of the
same numbers. So numbers and offset must share the value that c is in the file, and gain and bias
must be ordinary numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from models.layers.kinds import Multiply
from models.layers.normalization import Centre
from models.onnx.constants import check_repeated
from models.onnx.graph import Activation, Constant, Normaliser, Operation, Translation, Value
from models.onnx.operators.curved.steep import inverse
from models.onnx.operators.normalized.group_norm import require_ordinary
from models.onnx.operators.normalized.layer_norm import (
    alike,
    is_mean,
    less_mean,
    mean_of,
    scaled,
    standardize,
)

__all__ = ["in_parts", "reciprocal", "reciprocal_of_root"]

_HINT = (
    "a normalisation in parts is x * c + (bias - mean * c) or (x - mean) * c, with c = "
    "gain / sqrt(variance + eps) computed once, or x * c with c = 1 / sqrt(mean of x^2 + eps)"
)


def in_parts(operation: Operation, translation: Translation) -> Value:
    """An operator on a part of a normalisation. Raises ModelError where it is none of one."""
    check_repeated(operation)
    step = _STEPS.get(operation.op_type)
    if step is None:
        _refuse(operation)
    return step(operation, translation)


def reciprocal(operation: Operation, translation: Translation) -> Value:
    """1 / s of a root s, for a normalisation; 1 / (1 + exp(-x)), a Sigmoid; 1 / x of numbers from
    2^-100 on."""
    x = operation.activation()
    found = _root(operation, translation, x)
    if found is None:
        return inverse(operation, translation, x)
    return _factor(operation, found, None)


def reciprocal_of_root(operation: Operation, translation: Translation) -> Value | None:
    """constant / s, where the divisor is a root s; else None."""
    x = operation.input(1)
    found = _root(operation, translation, x) if isinstance(x, Activation) else None
    return None if found is None else _factor(operation, found, _constant(operation, 0, found))


def _refuse(operation: Operation) -> NoReturn:
    operation.refuse("this is no part of a normalisation that is supported", hint=_HINT)


def _root(operation: Operation, translation: Translation, x: Activation) -> Normaliser | None:
    """s, where x is sqrt(mean of squares + eps) over kept axes."""
    sums = translation.roots.get(x.name)
    if sums is None or not is_mean(sums) or x.shape != sums.shape:
        return None
    return Normaliser(sums.base, tuple(sums.axes), float(sums.shift), False, sums.shape)


def _factor(operation: Operation, part: Normaliser, gain: NDArray[Any] | None) -> Normaliser:
    """c, which this operator computes: the gain it has (or 1) times another one."""
    if math.prod(part.of.shape[axis] for axis in part.axes) < 2:
        operation.refuse("it normalises single numbers, each of which is its own mean")
    shape = part.shape
    if gain is not None:
        shape = _together(operation, shape, gain.shape)
        gain = None if (gain == 1).all() else gain
    if gain is not None:
        if part.gain is not None:
            operation.refuse("more than one gain", hint=_HINT)
        require_ordinary(operation, gain)
    kept = part.gain if gain is None else gain
    return replace(part, role="factor", factor=operation.outputs[0], gain=kept, shape=shape)


def _constant(operation: Operation, index: int, part: Normaliser) -> NDArray[np.float32]:
    """A float32 constant that broadcasts to a batch of such values, as one for a sample."""
    array = operation.constant(index)
    if array is None or array.dtype != np.float32:
        operation.refuse(f"input {index} must be float32 numbers", code="unsupported_dtype")
    rank = len(part.shape) + 1
    if array.ndim >= rank:
        if array.ndim > rank or array.shape[0] != 1:
            operation.refuse_batch(f"a constant of shape {array.shape} reaches over the batch axis")
        array = array[0]
    found: NDArray[np.float32] = array
    return found


def _together(operation: Operation, shape: tuple[int, ...], other: tuple[int, ...]) -> Any:
    """The shape of both; never one that the numbers themselves do not have."""
    try:
        return tuple(np.broadcast_shapes(shape, other))
    except ValueError:
        operation.refuse(f"shapes {shape} and {other} do not fit", code="shape_mismatch")


def _sides(operation: Operation) -> tuple[Normaliser, Value | None, int]:
    """The part (the first one), what is beside it, and the place of that."""
    at = 1 if isinstance(operation.input(0), Normaliser) else 0
    part = operation.input(1 - at)
    if not isinstance(part, Normaliser):
        _refuse(operation)
    return part, operation.input(at), at


def _source(translation: Translation, part: Normaliser) -> Activation | None:
    """x, whose variance the part is made of; None where that is a mean square."""
    return part.of if part.centred else less_mean(translation, part.of, part.axes)


def _signed_mean(translation: Translation, y: Activation) -> tuple[Activation, Any, int] | None:
    """(x, axes, sign) where y is the mean of x, or -1 times it."""
    layer, sources = translation.origins.get(y.name, (None, ()))
    if isinstance(layer, Multiply) and layer.value.numel() == 1 and layer.value.item() == -1.0:
        found = mean_of(translation, sources[0])
        same = sources[0].shape == y.shape
        return (*found, -1) if found is not None and same else None
    found = mean_of(translation, y)
    return None if found is None else (*found, 1)


def _multiplied(operation: Operation, translation: Translation) -> Value:
    part, other, at = _sides(operation)
    if part.role != "factor" or isinstance(other, Normaliser):
        _refuse(operation)
    if isinstance(other, Constant):
        return _factor(operation, part, _constant(operation, at, part))
    if not isinstance(other, Activation):
        _refuse(operation)
    divided = _divided_by(operation, translation, other, part)
    if divided is not None:
        return divided
    source = _source(translation, part)
    if source is not None and source == other:
        if _together(operation, other.shape, part.shape) != other.shape:
            _refuse(operation)
        return replace(part, role="numbers", shape=other.shape)
    mean = _signed_mean(translation, other)
    if source is None or mean is None or mean[:2] != (source, part.axes):
        _refuse(operation)
    shape = _together(operation, other.shape, part.shape)
    return replace(part, role="offset", sign=mean[2], shape=shape)


def _divided_by(
    operation: Operation, translation: Translation, x: Activation, part: Normaliser
) -> Activation | None:
    """x c (or x / s), where x is already what is normalised: less its mean, or of a mean square."""
    beside = (
        less_mean(translation, x, part.axes)
        if part.centred
        else alike(translation, x, part.of, part.axes)
    )
    if beside is None or (part.centred and beside != part.of):
        return None
    if _together(operation, x.shape, part.shape) != x.shape:
        _refuse(operation)
    result = standardize(operation, translation, part.axes, x, beside, eps=part.eps)
    return scaled(operation, translation, result, part.gain, None)


def _quotient(operation: Operation, translation: Translation) -> Value:
    """A constant over a root, or numbers over one."""
    part, other, at = _sides(operation)
    if at != 0 or part.role != "root":
        _refuse(operation)
    if isinstance(other, Constant):
        return _factor(operation, part, _constant(operation, 0, part))
    found = None
    if isinstance(other, Activation):
        found = _divided_by(operation, translation, other, part)
    if found is None:
        _refuse(operation)
    return found


def _reciprocal(operation: Operation, translation: Translation) -> Value:
    part = operation.input(0)
    if not isinstance(part, Normaliser) or part.role != "root":
        _refuse(operation)
    return _factor(operation, part, None)


def _negated(operation: Operation, translation: Translation) -> Value:
    part = operation.input(0)
    if not isinstance(part, Normaliser) or part.role != "offset" or part.bias is not None:
        _refuse(operation)
    return replace(part, sign=-part.sign)


def _added(operation: Operation, translation: Translation) -> Value:
    """bias + offset, or numbers + offset."""
    part, other, at = _sides(operation)
    if isinstance(other, Constant):
        return _with_bias(operation, part, at)
    if not isinstance(other, Normaliser):
        _refuse(operation)
    return _whole(operation, translation, part, other)


def _subtracted(operation: Operation, translation: Translation) -> Value:
    """bias - offset, or numbers - offset."""
    first, second = operation.input(0), operation.input(1)
    if not isinstance(second, Normaliser) or second.role != "offset" or second.bias is not None:
        _refuse(operation)
    turned = replace(second, sign=-second.sign)
    if isinstance(first, Constant):
        return _with_bias(operation, turned, 0)
    if not isinstance(first, Normaliser):
        _refuse(operation)
    return _whole(operation, translation, first, turned)


def _with_bias(operation: Operation, part: Normaliser, at: int) -> Normaliser:
    if part.role != "offset" or part.bias is not None:
        _refuse(operation)
    bias = _constant(operation, at, part)
    require_ordinary(operation, None, bias)
    shape = _together(operation, part.shape, bias.shape)
    return replace(part, bias=bias, shape=shape)


def _whole(
    operation: Operation, translation: Translation, first: Normaliser, second: Normaliser
) -> Activation:
    """x c + (bias - m c): a normalisation of its own, with a mean of its own."""
    numbers, offset = (first, second) if first.role == "numbers" else (second, first)
    fits = (numbers.role, offset.role, offset.sign) == ("numbers", "offset", -1)
    source = _source(translation, numbers)
    if not fits or numbers.factor != offset.factor or source is None:
        _refuse(operation)
    if _together(operation, source.shape, offset.shape) != source.shape:
        _refuse(operation)
    middle = translation.emit(operation, Centre(axes=numbers.axes), source)
    result = standardize(operation, translation, numbers.axes, middle, source, eps=numbers.eps)
    return scaled(operation, translation, result, numbers.gain, offset.bias)


def _same(operation: Operation, translation: Translation) -> Value:
    part = operation.input(0)
    if not isinstance(part, Normaliser):
        _refuse(operation)
    if operation.op_type == "Cast" and operation.attributes["to"] != TensorProto.FLOAT:
        operation.refuse("only a cast to float is supported", code="unsupported_dtype")
    return part


_STEPS: dict[str, Callable[[Operation, Translation], Value]] = {
    "Add": _added,
    "Cast": _same,
    "Div": _quotient,
    "Identity": _same,
    "Mul": _multiplied,
    "Neg": _negated,
    "Reciprocal": _reciprocal,
    "Sub": _subtracted,
}
