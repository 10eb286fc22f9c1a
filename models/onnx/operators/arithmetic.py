"""ONNX arithmetic: sums, differences, products and quotients, of nodes and with constants."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.layers.activations import Abs
from models.layers.curves import Reciprocal, Within
from models.layers.joins import Product, ReduceSum
from models.layers.kinds import Add, Divide, Layer, Multiply, Shape, Shift
from models.layers.shapes import Expand
from models.onnx.graph import Activation, Constant, Operation, Squares, Translation, Value
from models.onnx.operators.curved.gates import divided, gated
from models.onnx.operators.curved.steep import inverse, quotient
from models.onnx.operators.euclidean import cubed, lengths, squared
from models.onnx.operators.normalized.in_parts import reciprocal_of_root
from models.onnx.operators.normalized.layer_norm import centred, standardized

__all__ = [
    "add",
    "broadcasts_to",
    "div",
    "enlarged",
    "joined",
    "mul",
    "neg",
    "normalizer",
    "sample_constant",
    "scaler",
    "sub",
    "sum_of",
]

#: A Normalizer of order 2 gives the root of x^2 over the sum of squares, with x's sign. A square,
#: or the quotient, that underflows lacks 2^-126, of which the root, the sum 2^-40 or more, is less
#: than this. Its roundings are fewer than those of the norm, a reciprocal and a product.
LOST_BY_SQUARES, LEAST_LENGTH = 2.0**-42, 2.0**-20
MINUS_ONE = np.array(-1, dtype=np.float32)


def _one_constant(operation: Operation, translation: Translation, kind: type[Layer]) -> Activation:
    """An operator with one constant; the caller has decided which input that is."""
    at = 0 if isinstance(operation.input(0), Constant) else 1
    array = operation.constant(at)
    assert array is not None
    return _with_constant(operation, translation, kind, array, operation.activation(1 - at))


def _with_constant(
    operation: Operation,
    translation: Translation,
    kind: type[Layer],
    array: NDArray[Any],
    x: Activation,
) -> Activation:
    array = sample_constant(operation, array, x)
    value = translation.weight(operation, array)
    x = enlarged(operation, translation, x, array.shape)
    return translation.emit(operation, kind(value), x)


def sample_constant(operation: Operation, array: NDArray[Any], x: Activation) -> NDArray[Any]:
    """A constant that broadcasts to a batch, as one that broadcasts to a sample."""
    if array.ndim >= x.rank:
        if array.ndim > x.rank or array.shape[0] != 1:
            operation.refuse_batch(f"a constant of shape {array.shape} reaches over the batch axis")
        return array[0]
    return array


def enlarged(
    operation: Operation, translation: Translation, x: Activation, shape: Shape
) -> Activation:
    """The activation with its axes of size 1 repeated as often as a constant of this shape asks."""
    try:
        larger = tuple(np.broadcast_shapes(x.shape, shape))
    except ValueError:
        return x
    if larger == x.shape or len(larger) != len(x.shape):
        return x
    return translation.emit(operation, Expand(shape=larger), x)


def broadcasts_to(shape: Shape, target: Shape) -> bool:
    """Whether a constant of one shape broadcasts to exactly the other."""
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def joined(
    operation: Operation, translation: Translation, layer: Layer, x: Activation, y: Activation
) -> Activation:
    """An elementwise operator on two activations, which broadcast to one shape."""
    if x.rank != y.rank:
        # The shorter one is aligned at the end: its batch with another axis of the longer one.
        operation.refuse_batch(f"ranks {x.rank} and {y.rank} differ")
    try:
        shape = tuple(np.broadcast_shapes(x.shape, y.shape))
    except ValueError:
        operation.refuse(f"shapes {x.shape} and {y.shape} do not fit", code="shape_mismatch")
    both = [
        value if value.shape == shape else translation.emit(operation, Expand(shape=shape), value)
        for value in (x, y)
    ]
    return translation.emit(operation, layer, *both)


def _both_activations(operation: Operation) -> bool:
    return all(isinstance(value, Activation) for value in operation.inputs)


def add(operation: Operation, translation: Translation) -> Activation:
    """x + y; a constant after a MatMul becomes its bias."""
    if _both_activations(operation):
        x, y = operation.activation(0), operation.activation(1)
        return joined(operation, translation, Add(), x, y)
    at = 0 if isinstance(operation.input(0), Constant) else 1
    row = translation.open_matmuls.get(operation.input_names[1 - at])
    if row is not None and translation.uses[operation.input_names[1 - at]] == 1:
        x, array = operation.activation(1 - at), operation.constant(at)
        assert array is not None
        array = sample_constant(operation, array, x)
        if broadcasts_to(array.shape, x.shape):
            bias = np.ascontiguousarray(np.broadcast_to(array, x.shape).reshape(-1))
            translation.give_bias(row, translation.weight(operation, bias))
            return x
    return _one_constant(operation, translation, Shift)


def sub(operation: Operation, translation: Translation) -> Activation:
    """x - y, with a constant on either side; x less its own mean is one layer."""
    if _both_activations(operation):
        x, y = operation.activation(0), operation.activation(1)
        found = centred(operation, translation, x, y)
        if found is not None:
            return found
    # a - b is a + (-b) bit for bit, and a product with -1 is exact.
    if isinstance(operation.input(1), Constant):
        array = operation.constant(1)
        assert array is not None
        negative = np.negative(array) if array.dtype == np.float32 else array
        return _with_constant(operation, translation, Shift, negative, operation.activation(0))
    negated = _with_constant(operation, translation, Multiply, MINUS_ONE, operation.activation(1))
    if isinstance(operation.input(0), Constant):
        array = operation.constant(0)
        assert array is not None
        return _with_constant(operation, translation, Shift, array, negated)
    return joined(operation, translation, Add(), operation.activation(0), negated)


def mul(operation: Operation, translation: Translation) -> Activation | Squares:
    """x * y; x * gate(x) is one SiLU, GELU, HardSwish or Mish, and x * x or x * x^2 a power."""
    for x, y in (operation.inputs, operation.inputs[::-1]):
        if isinstance(x, Activation) and isinstance(y, Constant) and y.spread:
            product = _with_constant(operation, translation, Multiply, y.value, x)
            translation.spreads[product.name] = y.spread
            return product
    if not _both_activations(operation):
        return _one_constant(operation, translation, Multiply)
    x, y = operation.activation(0), operation.activation(1)
    if x == y:
        return squared(operation, translation, x)
    found = cubed(operation, translation, x, y) or gated(operation, translation, x, y)
    return joined(operation, translation, Product(), x, y) if found is None else found


def div(operation: Operation, translation: Translation) -> Value:
    """x / y with a constant divisor, or one from 2^-100 on; x / (1 + |x|), a Softsign; exp(x) over
    its sum, a Softmax; x / sqrt(mean of x^2 + eps), with the mean over axes that are kept, as layer
    normalisation ends; constant / such a root."""
    if isinstance(operation.input(0), Constant):
        return reciprocal_of_root(operation, translation) or _constant_over(operation, translation)
    if _both_activations(operation):
        x, y = operation.activation(0), operation.activation(1)
        for read in (divided, standardized, quotient):
            found = read(operation, translation, x, y)
            if found is not None:
                return found
        factor = inverse(operation, translation, y)
        found = gated(operation, translation, x, factor)
        return found or joined(operation, translation, Product(), x, factor)
    array = operation.constant(1)
    assert array is not None
    if not array.all():
        operation.refuse("division by zero", code="non_finite_weights")
    return _with_constant(operation, translation, Divide, array, operation.activation(0))


def _constant_over(operation: Operation, translation: Translation) -> Activation:
    """constant / y."""
    array = operation.constant(0)
    assert array is not None
    factor = inverse(operation, translation, operation.activation(1))
    if array.size == 1 and array.ndim <= factor.rank and array.reshape(-1)[0] == 1.0:
        return factor
    return _with_constant(operation, translation, Multiply, array, factor)


def neg(operation: Operation, translation: Translation) -> Activation:
    """-x, which is x * -1 bit for bit."""
    return _with_constant(operation, translation, Multiply, MINUS_ONE, operation.activation())


def scaler(operation: Operation, translation: Translation) -> Activation:
    """Scaler (scikit-learn): (x - offset) * scale, one of each per feature or for all."""
    x = operation.activation()
    arrays = []
    for name, plain in (("offset", 0.0), ("scale", 1.0)):
        array = np.array(operation.attributes.get(name, (plain,)), dtype=np.float32)
        if len(x.shape) != 1 or array.size not in (1, x.shape[0]):
            operation.refuse(f"{array.size} values of {name} do not fit inputs of shape {x.shape}")
        arrays.append(array)
    moved = _with_constant(operation, translation, Shift, np.negative(arrays[0]), x)
    return _with_constant(operation, translation, Multiply, arrays[1], moved)


def normalizer(operation: Operation, translation: Translation) -> Activation:
    """Normalizer (scikit-learn) of features [N, features]: x over the sum of |x| (L1), from 2^-100
    on, or over its Euclidean norm (L2), from 2^-20 on; inside the network too."""
    x, norm = operation.activation(), operation.attributes["norm"]
    if len(x.shape) != 1 or norm not in (b"L1", b"L2"):
        operation.refuse(
            f"the norm {norm!r:.20} of inputs of shape {x.shape}: only L1 and L2 of [batch, "
            "features] are supported",
            hint="normalise features outside the model, and send them so",
        )
    if norm == b"L1":
        size = translation.emit(operation, Abs(), x)
        size = translation.emit(operation, ReduceSum(axes=(0,), keepdims=True), size)
    else:
        size = lengths(operation, translation, x)
        size = translation.emit(operation, Within(low=LEAST_LENGTH), size)
    factor = translation.emit(operation, Reciprocal(), size)
    result = joined(operation, translation, Product(), x, factor)
    if norm == b"L2":
        result = translation.emit(operation, Within(off=LOST_BY_SQUARES), result)
    return result


def sum_of(operation: Operation, translation: Translation) -> Activation:
    """Sum of any number of nodes and constants, from the left to the right."""
    total: Activation | NDArray[Any] | None = None
    for index in range(len(operation.inputs)):
        value = operation.input(index)
        term = value if isinstance(value, Activation) else operation.constant(index)
        if total is None or term is None:
            total = term
        elif isinstance(total, Activation) and isinstance(term, Activation):
            total = joined(operation, translation, Add(), total, term)
        elif isinstance(total, Activation):
            assert not isinstance(term, Activation)
            total = _with_constant(operation, translation, Shift, term, total)
        elif isinstance(term, Activation):
            total = _with_constant(operation, translation, Shift, total, term)
        else:
            operation.refuse("more than one constant before the first activation")
    assert isinstance(total, Activation)
    return total
