"""What attention is made of: Softmax inside a network, and MatMul of two activations."""

from __future__ import annotations

import numpy as np

from models.layers.joins import Product, ReduceSum
from models.layers.kinds import Reshape, Shape
from models.layers.normalization import Softmax
from models.layers.shapes import Expand
from models.onnx.graph import Activation, Operation, Translation

__all__ = ["matmul_of_two", "softmax"]


def softmax(operation: Operation, translation: Translation) -> Activation:
    """Softmax over an axis, before opset 13 over all axes from one on, inside the network too."""
    x = operation.activation()
    axis = operation.axis(operation.attributes["axis"], x.rank)
    if axis == 0:
        operation.refuse_batch("it is taken over the batch axis")
    axes = (axis - 1,) if operation.opset >= 13 else tuple(range(axis - 1, x.rank - 1))
    return translation.emit(operation, Softmax(axes=axes), x)


def matmul_of_two(operation: Operation, translation: Translation) -> Activation:
    """x @ y of [N, ..., m, k] and [N, ..., k, n]: m k n products, and their sums over k."""
    x, y = operation.activation(0), operation.activation(1)
    if min(len(x.shape), len(y.shape)) < 2 or x.rank != y.rank:
        operation.refuse_batch(
            f"a product of activations of ranks {x.rank} and {y.rank}",
            hint="two activations are multiplied as [batch, ..., m, k] and [batch, ..., k, n]",
        )
    (m, k), (also, n) = x.shape[-2:], y.shape[-2:]
    try:
        before: Shape = tuple(np.broadcast_shapes(x.shape[:-2], y.shape[:-2]))
    except ValueError:
        before = ()
    if k != also or len(before) != len(x.shape) - 2:
        operation.refuse(f"shapes {x.shape} and {y.shape} do not fit", code="shape_mismatch")
    whole = (*before, m, k, n)
    translation.charge(operation, whole)
    sides = []
    for value, shape in ((x, (*x.shape, 1)), (y, (*y.shape[:-2], 1, k, n))):
        side = translation.emit(operation, Reshape(shape=shape), value)
        if shape != whole:
            side = translation.emit(operation, Expand(shape=whole), side)
        sides.append(side)
    products = translation.emit(operation, Product(), *sides)
    return translation.emit(operation, ReduceSum(axes=(len(before) + 1,)), products)
