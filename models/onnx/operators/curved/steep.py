"""Exp, Log, Sqrt and reciprocals, and what files write with them: sigmoid, tanh, softplus, softmax.

A quotient x / y is x times 1 / y: two roundings, one of which is none here. Where numerator and
divisor come from one exponential, their quotient as two values would be bounded as if they had
nothing to do with each other, so the function that it is is read. Where the file's own form leaves
float32 on the way (an infinite numerator over an infinite divisor), a ``Within`` before it keeps
to the numbers for which it does not; an infinite divisor alone gives the 0 that it should. How far
these forms are off is found by trying every float32 number (``benchmarks/verification/kernels.py``)
and is inside what the function's own rules allow. A softmax of n exponentials without their maximum
is off by 2 ``KERNEL_ROUNDINGS`` and n + 1 roundings of itself, less than what its rules allow.

Kernels that take a maximum m off first, log(sum exp(x)) = m + log(sum exp(x - m)), lose u |x - m|
in each exponent: of the sum no more than u log n of it, as that is the most that the mean of m - x
by the weights exp(x - m) may be. Beside n roundings of the sum, those of the exponentials and six
of max(1, |log|), all allowed here, a logarithm of at most n is off by less. A LogSoftmax takes m
and the logarithm off one after the other: two roundings of no more than the result, of three that
are allowed.
"""

from __future__ import annotations

import math

from models.layers.activations import Sigmoid, Softplus, Tanh
from models.layers.curves import Exp, Log, Reciprocal, Sqrt, Within
from models.layers.joins import ReduceSum
from models.layers.kinds import Add, Divide, Expand, Layer, Multiply, Shift
from models.layers.normalization import Softmax
from models.onnx.graph import Activation, Operation, Translation
from models.onnx.operators.curved.native import times
from models.onnx.operators.layout.axes import reduced_axes

__all__ = [
    "exp",
    "inverse",
    "log",
    "log_softmax",
    "quotient",
    "reduce_log_sum",
    "reduce_log_sum_exp",
    "sqrt",
]

#: Numbers up to which an exponential is finite (``workers.verification.layers.smooth.steep``), and
#: up to which in size a sum of ``MOST_TERMS`` of them, or of their reciprocals, is.
FINITE, SUMMED, MOST_TERMS = 88.0, 80.0, 4096
#: Exponents of which the logarithm of a sum is taken, at most: the rules of curves end at 2^80.
LOGGED = 55.0


def exp(operation: Operation, translation: Translation) -> Activation:
    """e to the power of x, elementwise, up to x = 88."""
    return translation.emit(operation, Exp(), operation.activation())


def log(operation: Operation, translation: Translation) -> Activation:
    """The natural logarithm of numbers from 2^-100 on; log(1 + exp(x)) is read as a Softplus."""
    x = operation.activation()
    made = _beside_exponential(translation, x)
    if made is None:
        return translation.emit(operation, Log(), x)
    inner = translation.emit(operation, Within(high=FINITE), made)
    return translation.emit(operation, Softplus(), inner)


def _log_sum_exp(
    operation: Operation,
    translation: Translation,
    x: Activation,
    axes: tuple[int, ...],
    *,
    keepdims: bool,
) -> Activation:
    """The logarithm of the sum of exp(x) over axes, up to x = 55. What the exponential of a number
    far below the others loses is far below their sum. One of them must be above -29: exponentials
    are known to within 1e-13 here."""
    if math.prod(x.shape[axis] for axis in axes) > MOST_TERMS:
        operation.refuse(f"a logarithm of more than {MOST_TERMS} exponentials is not supported")
    inner = translation.emit(operation, Within(high=LOGGED), x)
    powers = translation.emit(operation, Exp(), inner)
    sums = translation.emit(operation, ReduceSum(axes=axes, keepdims=keepdims), powers)
    return translation.emit(operation, Log(), sums)


def log_softmax(operation: Operation, translation: Translation) -> Activation:
    """x less the logarithm of the sum of exp(x), inside the network too; x up to 55, the largest
    from -29 on."""
    x = operation.activation()
    axis = operation.axis(operation.attributes["axis"], x.rank)
    if axis == 0:
        operation.refuse_batch("it is taken over the batch axis")
    axes = (axis - 1,) if operation.opset >= 13 else tuple(range(axis - 1, x.rank - 1))
    total = _log_sum_exp(operation, translation, x, axes, keepdims=True)
    negative = times(operation, translation, total, -1.0)
    spread = translation.emit(operation, Expand(shape=x.shape), negative)
    return translation.emit(operation, Add(), x, spread)


def reduce_log_sum_exp(operation: Operation, translation: Translation) -> Activation:
    """The logarithm of the sum of exp(x) over axes other than the batch, x up to 55, the largest
    from -29 on."""
    x, axes = operation.activation(), reduced_axes(operation)
    if not axes:
        operation.refuse("without axes it is not supported")
    keepdims = bool(operation.attributes["keepdims"])
    return _log_sum_exp(operation, translation, x, tuple(axes), keepdims=keepdims)


def reduce_log_sum(operation: Operation, translation: Translation) -> Activation:
    """The logarithm of sums over axes other than the batch, from 2^-100 on."""
    axes = reduced_axes(operation)
    if not axes:
        operation.refuse("without axes it is not supported")
    layer = ReduceSum(axes=axes, keepdims=bool(operation.attributes["keepdims"]))
    sums = translation.emit(operation, layer, operation.activation())
    return translation.emit(operation, Log(), sums)


def sqrt(operation: Operation, translation: Translation) -> Activation:
    """The root of numbers that are not negative; of a sum of squares their Euclidean norm."""
    return translation.emit(operation, Sqrt(), operation.activation())


def inverse(operation: Operation, translation: Translation, y: Activation) -> Activation:
    """1 / y: of 1 + exp(z) a Sigmoid of -z, else the reciprocal of y, from 2^-100 on."""
    made = _beside_exponential(translation, y)
    if made is None:
        return translation.emit(operation, Reciprocal(), y)
    return translation.emit(operation, Sigmoid(), _negated(operation, translation, made))


def quotient(
    operation: Operation, translation: Translation, x: Activation, y: Activation
) -> Activation | None:
    """x / y as one function of what is in the exponents of both; else None."""
    for read in (_softmax, _tanh, _hyperbolic, _sigmoid):
        found = read(operation, translation, x, y)
        if found is not None:
            return found
    return None


def _origin(translation: Translation, value: Activation) -> tuple[Layer | None, list[Activation]]:
    layer, sources = translation.origins.get(value.name, (None, ()))
    return layer, list(sources)


def _exponent(translation: Translation, value: Activation) -> Activation | None:
    """z, where the value is exp(z)."""
    layer, sources = _origin(translation, value)
    return sources[0] if isinstance(layer, Exp) else None


def _changed(
    translation: Translation, value: Activation, kind: type[Multiply | Shift], number: float
) -> Activation | None:
    """What the value is less (or divided by) this one number; else None."""
    layer, sources = _origin(translation, value)
    if not isinstance(layer, kind) or layer.value.numel() != 1 or sources[0].shape != value.shape:
        return None
    return sources[0] if float(layer.value.detach()) == number else None


def _beside_exponential(
    translation: Translation, value: Activation, shift: float = 1.0
) -> Activation | None:
    """z, where the value is exp(z) + 1 (or - 1)."""
    plain = _changed(translation, value, Shift, shift)
    return None if plain is None else _exponent(translation, plain)


def _negated(operation: Operation, translation: Translation, z: Activation) -> Activation:
    """-z, exactly: with the other sign on the number that it was multiplied with, if there is one,
    so that a gate is seen as one of the number before."""
    layer, sources = _origin(translation, z)
    if isinstance(layer, Multiply | Divide) and layer.value.numel() == 1:
        (x,) = sources
        if x.shape == z.shape:
            number = -layer.value.detach()
            if float(number) == 1.0:
                return x
            return translation.emit(operation, type(layer)(number), x)
    return times(operation, translation, z, -1.0)


def _opposite(translation: Translation, z: Activation, w: Activation) -> bool:
    """Whether one is -1 times the other."""
    return (
        _changed(translation, z, Multiply, -1.0) == w
        or _changed(translation, w, Multiply, -1.0) == z
    )


def _sigmoid(
    operation: Operation, translation: Translation, x: Activation, y: Activation
) -> Activation | None:
    """exp(z) / (1 + exp(z))."""
    z = _exponent(translation, x)
    if z is None or _changed(translation, y, Shift, 1.0) != x:
        return None
    inner = translation.emit(operation, Within(high=FINITE), z)
    return translation.emit(operation, Sigmoid(), inner)


def _hyperbolic(
    operation: Operation, translation: Translation, x: Activation, y: Activation
) -> Activation | None:
    """(exp(z) - 1) / (exp(z) + 1) = tanh(z / 2), or (1 - exp(z)) / (1 + exp(z)) = -tanh(z / 2)."""
    z = _beside_exponential(translation, y)
    sign = 1.0
    if z is not None and _beside_exponential(translation, x, -1.0) != z:
        sign = -1.0
        turned = _changed(translation, x, Shift, 1.0)
        falling = None if turned is None else _changed(translation, turned, Multiply, -1.0)
        if falling is None or _exponent(translation, falling) != z:
            return None
    if z is None:
        return None
    inner = translation.emit(operation, Within(high=FINITE), z)
    half = times(operation, translation, inner, 0.5)
    return times(operation, translation, translation.emit(operation, Tanh(), half), sign)


def _tanh(
    operation: Operation, translation: Translation, x: Activation, y: Activation
) -> Activation | None:
    """(exp(z) - exp(-z)) / (exp(z) + exp(-z))."""
    (above, terms), (below, both) = _origin(translation, x), _origin(translation, y)
    if not (isinstance(above, Add) and isinstance(below, Add)):
        return None
    for rising, other in (terms, terms[::-1]):
        falling = _changed(translation, other, Multiply, -1.0)
        if falling is None or [rising, falling] not in (both, both[::-1]):
            continue
        z, w = _exponent(translation, rising), _exponent(translation, falling)
        if z is None or w is None or not _opposite(translation, z, w):
            continue
        inner = translation.emit(operation, Within(low=-SUMMED, high=SUMMED), z)
        return translation.emit(operation, Tanh(), inner)
    return None


def _softmax(
    operation: Operation, translation: Translation, x: Activation, y: Activation
) -> Activation | None:
    """exp(z) over its sum along axes that are kept; z with or without its maximum subtracted."""
    z, (layer, sources) = _exponent(translation, x), _origin(translation, y)
    if z is None or not isinstance(layer, ReduceSum) or not layer.keepdims or sources != [x]:
        return None
    axes = tuple(sorted(layer.axes))
    if len(axes) > 1 and axes != tuple(range(axes[0], len(x.shape))):
        return None
    source = _less_maximum(translation, z, axes)
    if source is None:
        if math.prod(x.shape[axis] for axis in axes) > MOST_TERMS:
            return None
        source = translation.emit(operation, Within(low=-SUMMED, high=SUMMED), z)
    return translation.emit(operation, Softmax(axes=axes), source)


def _less_maximum(
    translation: Translation, z: Activation, axes: tuple[int, ...]
) -> Activation | None:
    """u, where z is u less its maximum over these axes."""
    layer, sources = _origin(translation, z)
    if not isinstance(layer, Add):
        return None
    for source, other in (sources, sources[::-1]):
        inner, before = _origin(translation, other)
        negative = before[0] if isinstance(inner, Expand) else other
        highest = _changed(translation, negative, Multiply, -1.0)
        if highest is not None and translation.maxima.get(highest.name) == (source, axes):
            return source
    return None
