"""Attention, and what it is made of: Softmax inside a network, and MatMul of two activations."""

from __future__ import annotations

import math

import numpy as np

from models.layers.joins import Product, ReduceSum
from models.layers.kinds import Multiply, Permute, Reshape, Shape
from models.layers.normalization import Softmax
from models.layers.shapes import Expand
from models.onnx.graph import Activation, Operation, Translation

__all__ = ["attention", "matmul_of_two", "softmax"]

#: Factors of products of queries and keys: none that lets them overflow, or vanish, elsewhere.
SCALES = (2.0**-20, 1.0)


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
    return _product(operation, translation, operation.activation(0), operation.activation(1))


def attention(operation: Operation, translation: Translation) -> Activation:
    """softmax(scale q k^T) v of queries, keys and values [N, heads, places, size], without a mask,
    a cache, a softcap and windows.

    ONNX Runtime multiplies the sums by the scale, as here. Wherever it did so instead, each product
    would have a few roundings more, which the rules of product, sum and factor leave room for.
    """
    q, k, v = (operation.activation(place) for place in range(3))
    names = ("a mask", "earlier keys", "earlier values", "lengths")
    given = [name for place, name in enumerate(names, 3) if operation.input(place) is not None]
    attributes = operation.attributes
    given += [name for name in ("is_causal", "softcap") if attributes.get(name)]
    if given:
        operation.refuse(f"attention with {', '.join(given)} is not supported")
    if attributes.get("softmax_precision", 1) not in (0, 1):
        operation.refuse("only computation in float32 is supported (softmax_precision 1)")
    windows = [attributes.get(f"{side}_window_size", -1) for side in ("left", "right")]
    if windows != [-1, -1]:
        operation.refuse(f"attention within windows of {windows} places is not supported")
    if any(translation.uses[name] for name in operation.outputs[1:] if name):
        operation.refuse("only its first output is supported")
    ranks = {len(value.shape) for value in (q, k, v)}
    if ranks != {3} or k.shape[:2] != v.shape[:2] or (q.shape[0], q.shape[2]) != k.shape[::2]:
        operation.refuse(
            f"queries, keys and values of shapes {q.shape}, {k.shape} and {v.shape}: only "
            "[batch, heads, places, size], with as many heads each, is supported"
        )
    scale = attributes.get("scale")
    scale = float(np.float32(1.0 / math.sqrt(q.shape[2]) if scale is None else scale))
    if not SCALES[0] <= scale <= SCALES[1]:
        operation.refuse(f"only scales from 2^-20 to 1 are supported, not {scale}")
    turned = translation.emit(operation, Permute(axes=(0, 2, 1)), k)
    scores = _product(operation, translation, q, turned)
    factor = translation.weight(operation, np.array(scale, np.float32))
    scores = translation.emit(operation, Multiply(factor), scores)
    shares = translation.emit(operation, Softmax(axes=(2,)), scores)
    return _product(operation, translation, shares, v)


def _product(
    operation: Operation, translation: Translation, x: Activation, y: Activation
) -> Activation:
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
