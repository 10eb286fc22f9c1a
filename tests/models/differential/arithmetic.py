"""Steps that compute number by number: arithmetic, extremes, activations, what does nothing."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.models.differential.builder import Builder, Shape
from tests.models.differential.steps import ODD, Step, broadcast

__all__ = [
    "cast",
    "clip",
    "dropout",
    "expand",
    "exponential",
    "gate",
    "leaky_relu",
    "of_two",
    "power",
    "quotient",
    "shaped",
    "softsign",
    "unary",
    "with_constant",
]


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
        if b.chance(0.3) and shape and kind != "Sum":
            # One that broadcasts.
            axis = b.number(1, len(shape))
            form, more = b.axes_form([axis], 18)
            same = [b.node("ReduceMean", [x, *form], keepdims=1, **more)]
        if b.chance(ODD):
            same = [name for name, other in b.shapes.items() if len(other) != len(shape)] or same
        inputs = [x, b.pick(same)]
        if kind in ("Max", "Min", "Sum") and b.chance(0.5):
            inputs += [broadcast(b, shape)]
        order = b.rng.permutation(len(inputs))
        return b.node(kind, [inputs[place] for place in order])

    return step


def shaped(kind: str, since: int, **choices: list[object]) -> Step:
    """An activation with attributes that there is from an opset on; before it nothing happens."""

    def step(b: Builder, x: str, shape: Shape) -> str:
        given = {name: b.pick(values) for name, values in choices.items() if b.chance(0.7)}
        return b.node(kind, [x], **given) if b.opset >= since else b.node("Identity", [x])

    return step


def power(b: Builder, x: str, shape: Shape) -> str:
    exponent = b.pick([1.0, 2.0, 3.0, 0.5 if b.chance(ODD) else 2.0])
    small = b.node("Tanh", [x])
    return b.node("Pow", [small, b.constant(np.array(exponent, np.float32))])


def gate(b: Builder, x: str, shape: Shape) -> str:
    """x times a gate of x, or nearly one, with numbers in odd places."""

    def number(value: float) -> str:
        return b.constant(np.array(value, np.float32))

    kind = b.pick(["Sigmoid", "Erf", "Mish", "Clip", "Tanh"] if b.opset >= 9 else ["Sigmoid"])
    gated = x
    if kind == "Erf":
        root = b.pick([2.0**0.5, 2.0**0.5, 1.5])
        scaled = (
            b.node("Div", [x, number(root)])
            if b.chance(0.5)
            else b.node("Mul", [x, number(1.0 / root)])
        )
        gated = b.node("Add", [b.node("Erf", [scaled]), number(b.pick([1.0, 1.0, 0.5]))])
    elif kind == "Tanh":
        cube = (
            b.node("Pow", [x, number(3.0)])
            if b.chance(0.5)
            else b.node("Mul", [x, b.node("Mul", [x, x])])
        )
        inner = b.node("Add", [x, b.node("Mul", [cube, number(0.044715)])])
        inner = b.node("Mul", [inner, number((2.0 / np.pi) ** 0.5)])
        gated = b.node("Add", [b.node("Tanh", [inner]), number(1.0)])
    elif kind == "Mish":
        gated = b.node("Tanh", [b.node("Softplus", [x])])
    elif kind == "Clip":
        gated = b.node("HardSigmoid", [x], alpha=b.pick([1.0 / 6.0, 0.2]), beta=0.5)
    else:
        scaled = b.node("Mul", [x, number(1.702)]) if b.chance(0.5) else x
        gated = b.node("Sigmoid", [scaled])
    value = b.node("Mul", [x, number(0.5)]) if b.chance(0.5) else x
    return b.node("Mul", [value, gated] if b.chance(0.5) else [gated, value])


def softsign(b: Builder, x: str, shape: Shape) -> str:
    one = b.constant(np.array(1.0, np.float32))
    return b.node("Div", [x, b.node("Add", [b.node("Abs", [x]), one])])


def exponential(b: Builder, x: str, shape: Shape) -> str:
    """Exp, and what files write with it: bells, sigmoids, tanh, softplus, softmax."""

    def number(value: float) -> str:
        return b.constant(np.array(value, np.float32))

    kind = b.pick(["Exp", "bell", "logistic", "logistic", "share", "softplus", "tanh", "softmax"])
    if kind == "Exp":
        return b.node("Exp", [b.node("Tanh", [x]) if b.chance(0.5) else x])
    if kind == "bell":
        return b.node("Exp", [b.node("Neg", [b.node("Mul", [x, x])])])
    if kind == "tanh":
        rising, falling = b.node("Exp", [x]), b.node("Exp", [b.node("Neg", [x])])
        if b.chance(0.5):
            one = number(1.0)
            rising = b.node("Exp", [b.node("Mul", [x, number(2.0)])])
            return b.node("Div", [b.node("Sub", [rising, one]), b.node("Add", [one, rising])])
        sums = [rising, falling] if b.chance(0.7) else [falling, rising]
        return b.node("Div", [b.node("Sub", [rising, falling]), b.node("Add", sums)])
    if kind == "softmax":
        axis = b.number(1, len(shape))
        if b.chance(0.5):
            form, more = b.axes_form([axis], 18)
            x = b.node("Sub", [x, b.node("ReduceMax", [x, *form], keepdims=1, **more)])
        e = b.node("Exp", [x])
        form, more = b.axes_form([axis], 13)
        return b.node("Div", [e, b.node("ReduceSum", [e, *form], keepdims=1, **more)])
    scaled = b.node("Mul", [x, number(b.pick([1.702, -2.0]))]) if b.chance(0.3) else x
    e = b.node("Exp", [b.node("Neg", [scaled]) if kind == "logistic" else scaled])
    more = b.node("Add", [e, number(b.pick([1.0, 1.0, 1.0, 0.5]))])
    if kind == "softplus":
        return b.node("Log", [more])
    if kind == "share":
        return b.node("Div", [e, more])
    if b.chance(0.4):
        return b.node("Reciprocal", [more])
    return b.node("Div", [b.pick([number(1.0), number(-3.0), x]), more])


def quotient(b: Builder, x: str, shape: Shape) -> str:
    """Log, Sqrt and reciprocals of what is above 0; a quotient by it."""
    half = b.constant(np.array(0.5, np.float32))
    positive = b.node("Add", [b.node("Abs", [x]), half])
    kind = b.pick(["Log", "Log", "Sqrt", "Reciprocal", "Reciprocal", "Div", "Pow"])
    if kind == "Div":
        return b.node("Div", [x, positive])
    if kind == "Pow":
        exponent = np.array(b.pick([0.5, -0.5, -1.0]), np.float32)
        return b.node("Pow", [positive, b.constant(exponent)])
    return b.node(kind, [positive])


def log_softmax(b: Builder, x: str, shape: Shape) -> str:
    """Inside the network: something follows it."""
    axis = b.pick([-1, *range(1, len(shape) + 1)])
    result = b.node("LogSoftmax", [x], axis=axis)
    return b.node("Mul", [result, b.constant(np.array(0.5, np.float32))])


def log_of_sums(b: Builder, x: str, shape: Shape) -> str:
    """Of what is above 0."""
    positive = b.node("Add", [b.node("Abs", [x]), b.constant(np.array(0.3, np.float32))])
    form, more = b.axes_form([b.number(1, len(shape))], 18)
    return b.node("ReduceLogSum", [positive, *form], keepdims=1, **more)


def binarised(b: Builder, x: str, shape: Shape) -> str:
    """The sign of numbers of which some are 0, as Larq writes it or plainly."""
    if b.opset < 9:
        return b.node("Ceil", [x])
    sign = b.node("Sign", [b.node("Relu", [x]) if b.chance(0.3) else x])
    if b.chance(0.5):
        moved = b.node("Add", [sign, b.constant(np.array(b.pick([0.1, -0.1, 1.0]), np.float32))])
        sign = b.node("Sign", [moved])
    return sign


def expand(b: Builder, x: str, shape: Shape) -> str:
    if b.opset < 8:
        return b.node("Identity", [x])
    form, more = b.axes_form([b.number(1, len(shape))], 18)
    mean = b.node("ReduceMean", [x, *form], keepdims=1, **more)
    sizes = [1, *shape] if not b.chance(ODD) else [2, *shape]
    return b.node("Expand", [mean, b.constant(np.array(sizes, np.int64))])


def leaky_relu(b: Builder, x: str, shape: Shape) -> str:
    given = {} if b.chance(0.3) else {"alpha": b.pick([0.0, 0.2, 0.5, 1.0, -0.3, 1.5])}
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
