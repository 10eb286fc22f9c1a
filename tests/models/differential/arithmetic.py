"""Steps that compute number by number: arithmetic, extremes, activations, what does nothing."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.models.differential.builder import Builder, Shape
from tests.models.differential.steps import ODD, Step, broadcast

__all__ = ["cast", "clip", "dropout", "leaky_relu", "of_two", "unary", "with_constant"]


def unary(kind: str) -> Step:
    return lambda b, x, shape: b.node(kind, [x])


def with_constant(kind: str, *, positive: bool = False, right: bool = False) -> Step:
    def step(b: Builder, x: str, shape: Shape) -> str:
        inputs = [x, broadcast(b, shape, positive=positive)]
        return b.node(kind, inputs if right or b.chance(0.6) else inputs[::-1])

    return step


def of_two(kind: str) -> Step:
    """An operator on two activations (mostly) of one shape, and constants for those with many."""

    def step(b: Builder, x: str, shape: Shape) -> str:
        same = [name for name, other in b.shapes.items() if other == shape]
        if b.chance(ODD):
            same = [name for name, other in b.shapes.items() if len(other) != len(shape)] or same
        inputs = [x, b.pick(same)]
        if kind in ("Max", "Min", "Sum") and b.chance(0.5):
            inputs += [broadcast(b, shape)]
        order = b.rng.permutation(len(inputs))
        return b.node(kind, [inputs[place] for place in order])

    return step


def leaky_relu(b: Builder, x: str, shape: Shape) -> str:
    given = {} if b.chance(0.3) else {"alpha": b.pick([0.0, 0.2, 0.5, 1.0])}
    return b.node("LeakyRelu", [x], **given)


def clip(b: Builder, x: str, shape: Shape) -> str:
    low, high = b.pick([None, -0.5, 0.0, -3.4e38]), b.pick([None, 0.7, 6.0, 0.1])
    if b.opset < 11:
        given = {key: value for key, value in (("min", low), ("max", high)) if value is not None}
        return b.node("Clip", [x], **given)
    inputs = [x]
    for bound in (low, high):
        inputs.append("" if bound is None else b.constant(np.array(bound, np.float32)))
    while inputs[-1] == "" and b.chance(0.5):
        inputs.pop()
    return b.node("Clip", inputs)


def dropout(b: Builder, x: str, shape: Shape) -> str:
    outputs = b.pick([1, 1, 2])
    if b.opset < 12:
        return b.node("Dropout", [x], outputs, ratio=0.3)
    inputs = [x, *([b.constant(np.array(0.3, np.float32))] if b.chance(0.5) else [])]
    return b.node("Dropout", inputs, outputs)


def cast(b: Builder, x: str, shape: Shape) -> str:
    return b.node("Cast", [x], to=TensorProto.FLOAT)
