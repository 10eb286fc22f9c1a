"""Greater, Less and Where: activations written as a choice, and constants put in fixed places.

A comparison of an activation with a number is no layer. It is taken where the choice that reads it
is continuous at that number, and so a layer that there are bounds for: slopes on both sides of 0,
an exponential below 0, what is beyond a number (soft shrinkage), and a Softplus that is left for
its own argument where that is large (as torch writes it); or where it chooses between two numbers,
which is a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.layers.activations import Sign, Softplus
from models.layers.base import Layer
from models.layers.curves import ELU, LARGEST_FACTOR, Exp
from models.layers.kinds import Add, Divide, Multiply, ReLU, Shift
from models.onnx.graph import (
    Activation,
    Choice,
    Comparison,
    Constant,
    Operation,
    Translation,
    Value,
)
from models.onnx.operators.activations import bent, clamped
from models.onnx.operators.arithmetic import MINUS_ONE, enlarged, sample_constant

__all__ = ["JUMPS", "WRITTEN", "compared", "truth", "where"]

#: From here on a Softplus is its argument to within 2^-24.5 of it, less than one rounding.
_SOFTPLUS_IS_STRAIGHT = 17.0
#: What to do about a choice that may jump.
JUMPS = (
    "what chooses by a comparison may jump: write it with Relu, LeakyRelu, Max, Min or Clip "
    "(torch: relu, leaky_relu, maximum, clamp)"
)
#: What to do about constants that are not the same on every machine.
WRITTEN = (
    "compute them before the export, or let ONNX Runtime write them into the file "
    "(SessionOptions: ORT_ENABLE_BASIC, optimized_model_filepath)"
)


def compared(*, above: bool, strict: bool) -> Callable[[Operation, Translation], Comparison]:
    """The translator of an operator that is true above (or below) its second input, or at it."""

    def translate(operation: Operation, translation: Translation) -> Comparison:
        """An activation with a number, where a Where reads it, or a Cast to float."""
        turned = isinstance(operation.input(0), Constant)
        array = operation.constant(0 if turned else 1)
        x = operation.activation(1 if turned else 0)
        if array is None or array.size != 1 or array.ndim > x.rank or array.dtype != np.float32:
            operation.refuse("only a comparison with one float32 number is supported", hint=JUMPS)
        return Comparison(x, float(array.reshape(())[()]), above is not turned, strict)

    return translate


def where(operation: Operation, translation: Translation) -> Activation | Choice:
    """Where: x above 0 and a slope times x, or an ELU's exponential, below; x - c on one side of c
    and 0 on the other; two numbers, as a step; a Softplus, and x itself where it is large; pairs of
    channels and their reflections (Householder); two values by a constant condition."""
    condition = operation.input(0)
    if isinstance(condition, Constant):
        return _by_place(operation, translation)
    if not isinstance(condition, Comparison):
        operation.refuse("the condition must be a comparison or a constant", hint=JUMPS)
    x, sides = condition.of, [operation.input(1), operation.input(2)]
    activations = [side for side in sides if isinstance(side, Activation)]
    if any(replace(side, name=x.name, shape=x.shape) != x for side in activations):
        operation.refuse_batch("its inputs have their batch axes in different places")
    undecided = _undecided(operation, condition, sides)
    if any(value.name in translation.spreads for value in (x, *activations)):
        return undecided or operation.refuse("a choice by a comparison that may jump", hint=JUMPS)
    if not condition.above:
        sides.reverse()
    if condition.bound == 0.0:
        slopes = [_slope(translation, side, x) for side in sides]
        if slopes[0] is not None and slopes[1] is not None:
            return _two_slopes(operation, translation, x, slopes[0], slopes[1])
        elu = _exponential(operation, translation, sides)
        if elu is not None and sides[0] == x:
            return elu
    found = _straight_softplus(translation, condition, sides)
    found = found or _beyond(operation, translation, condition, sides)
    found = found or _two_values(operation, translation, condition, sides)
    return (
        found or undecided or operation.refuse("a choice by a comparison that may jump", hint=JUMPS)
    )


def _undecided(
    operation: Operation, condition: Comparison, sides: list[Value | None]
) -> Choice | None:
    """A choice between two activations, which may be a part of a fold."""
    chosen, other = sides
    if not isinstance(chosen, Activation) or not isinstance(other, Activation):
        return None
    values = (condition.of, chosen, other)
    plain = all(v.batched and not v.batch_axis and not v.merged for v in values)
    if not plain or len({v.shape for v in values}) > 1 or condition.number:
        return None
    return Choice(condition, chosen, other, operation.label)


def _slope(translation: Translation, side: Value | None, x: Activation) -> float | None:
    """The number s of a side that is s x, rounded once at most; 0 for a constant 0."""
    if isinstance(side, Constant):
        plain = side.value.size == 1 and not side.depends_on_batch and not side.spread
        fits = plain and side.value.ndim <= x.rank
        return 0.0 if fits and not side.value.any() else None
    if not isinstance(side, Activation):
        return None
    if side == x:
        return 1.0
    layer, sources = translation.origins.get(side.name, (None, ()))
    if isinstance(layer, Multiply) and layer.value.numel() == 1 and sources == (x,):
        return float(layer.value.detach())
    return None


def _two_slopes(
    operation: Operation, translation: Translation, x: Activation, above: float, below: float
) -> Activation:
    """above max(x, 0) - below max(-x, 0): one part is 0, the other rounds as its product does."""
    if (above, below) == (1.0, 0.0):
        return clamped(operation, translation, x, 0.0, None)
    if above == 1.0:
        return bent(operation, translation, x, np.array(below, dtype=np.float32))
    parts = []
    for sign, slope in ((1.0, above), (-1.0, -below)):
        part = x
        if sign < 0:
            minus = translation.weight(operation, MINUS_ONE)
            part = translation.emit(operation, Multiply(minus), part)
        part = translation.emit(operation, ReLU(), part)
        if slope != 1.0:
            factor = translation.weight(operation, np.array(slope, dtype=np.float32))
            part = translation.emit(operation, Multiply(factor), part)
        parts.append(part)
    return translation.emit(operation, Add(), *parts)


def _exponential(
    operation: Operation, translation: Translation, sides: list[Value | None]
) -> Activation | None:
    """An ELU, where the sides are x and alpha (exp(x) - 1), as it stands or multiplied out."""
    x, below = sides
    if not isinstance(x, Activation) or not isinstance(below, Activation):
        return None
    numbers: list[tuple[type[Layer], float]] = []
    layer, sources = translation.origins.get(below.name, (None, ()))
    while isinstance(layer, Multiply | Shift) and layer.value.numel() == 1 and len(numbers) < 2:
        numbers.append((type(layer), float(layer.value.detach())))
        layer, sources = translation.origins.get(sources[0].name, (None, ()))
    if not isinstance(layer, Exp) or sources != (x,) or below.shape != x.shape:
        return None
    alpha = 0.0
    if numbers == [(Shift, -1.0)]:
        alpha = 1.0
    elif len(numbers) == 2:
        (outer, second), (inner, first) = numbers
        if outer is Multiply and (inner, first) == (Shift, -1.0):
            alpha = second
        elif inner is Multiply and (outer, second) == (Shift, -first):
            alpha = first
    if not 1.0 / LARGEST_FACTOR <= alpha <= LARGEST_FACTOR:
        return None
    return translation.emit(operation, ELU(alpha=alpha), x)


def _beyond(
    operation: Operation,
    translation: Translation,
    condition: Comparison,
    sides: list[Value | None],
) -> Activation | None:
    """max(x - c, 0) where x - c is chosen above c, min(x - c, 0) where it is below, else 0.

    A difference of two float32 numbers is rounded to 0 only where it is 0.
    """
    for place, (side, other) in enumerate((sides, sides[::-1])):
        if not isinstance(side, Activation) or _slope(translation, other, condition.of) != 0.0:
            continue
        moved: Activation | None = side
        if condition.bound != 0.0:
            layer, sources = translation.origins.get(side.name, (None, ()))
            moved = None
            if isinstance(layer, Shift) and layer.value.numel() == 1:
                same = float(layer.value.detach()) == -condition.bound
                moved = sources[0] if same else None
        if moved == condition.of and side.shape == condition.of.shape:
            low, high = (0.0, None) if place == 0 else (None, 0.0)
            return clamped(operation, translation, side, low, high)
    return None


def _two_values(
    operation: Operation,
    translation: Translation,
    condition: Comparison,
    sides: list[Value | None],
) -> Activation | None:
    """One number above the bound, another one below: a step."""
    values = []
    for side in sides:
        if not isinstance(side, Constant) or side.value.size != 1 or side.depends_on_batch:
            return None
        if side.value.ndim > condition.of.rank or side.value.dtype != np.float32 or side.spread:
            return None
        values.append(float(side.value.reshape(())[()]))
    return _step_between(operation, translation, condition, *values)


def _step_between(
    operation: Operation,
    translation: Translation,
    condition: Comparison,
    above: float,
    below: float,
) -> Activation | None:
    """``above`` where the condition's number is above the bound, ``below`` elsewhere; at the bound
    whichever the condition says. None where half of their sum and difference are no float32 numbers
    that give them exactly.

    x - c is rounded to 0 only where it is 0: its sign is the comparison.
    """
    middle, half = np.float32(0.5 * above + 0.5 * below), np.float32(0.5 * above - 0.5 * below)
    ends = (float(middle) + float(half), float(middle) - float(half))
    if ends != (above, below) or above == below or not np.isfinite(condition.bound):
        return None
    x = condition.of
    if condition.bound != 0.0:
        number = np.array(-condition.bound, dtype=np.float32)
        x = translation.emit(operation, Shift(translation.weight(operation, number)), x)
    at_zero = 1 if condition.above is not condition.strict else -1
    x = translation.emit(operation, Sign(at_zero=at_zero), x)
    for kind, value, nothing in ((Multiply, half, 1.0), (Shift, middle, 0.0)):
        if value != nothing:
            weight = translation.weight(operation, np.array(value, dtype=np.float32))
            x = translation.emit(operation, kind(weight), x)
    return x


def truth(operation: Operation, translation: Translation, condition: Comparison) -> Activation:
    """A comparison as a number: 1 where it is true, else 0. Not of numbers that every machine
    computes in its own way: they may lie on either side."""
    values = (1.0, 0.0) if condition.above else (0.0, 1.0)
    if condition.of.name in translation.spreads:
        operation.refuse("it compares products with constants of Sin or Cos", hint=WRITTEN)
    found = _step_between(operation, translation, condition, *values)
    if found is None:
        operation.refuse(f"a comparison with {condition.bound}", hint=JUMPS)
    return found


def _straight_softplus(
    translation: Translation, condition: Comparison, sides: list[Value | None]
) -> Activation | None:
    """softplus(b x) / b in the place of a choice between it and, where b x is large, x itself.

    There x differs from it by less than one rounding, and one is allowed for its last operator.
    """
    straight, soft = sides
    if not isinstance(soft, Activation) or not condition.bound >= _SOFTPLUS_IS_STRAIGHT:
        return None
    beta = 1.0
    layer, sources = translation.origins.get(soft.name, (None, ()))
    if isinstance(layer, Divide) and layer.value.numel() == 1:
        beta = float(layer.value.detach())
        layer, sources = translation.origins.get(sources[0].name, (None, ()))
    if not isinstance(layer, Softplus) or sources != (condition.of,):
        return None
    if beta == 1.0 and straight == condition.of:
        return soft
    layer, sources = translation.origins.get(condition.of.name, (None, ()))
    if not isinstance(layer, Multiply) or layer.value.numel() != 1 or sources != (straight,):
        return None
    return soft if float(layer.value.detach()) == beta > 0.0 else None


def _by_place(operation: Operation, translation: Translation) -> Activation:
    """Each number from one side or the other, by its place: products with 0 and 1, and a sum."""
    array = operation.constant(0)
    if array is None or array.dtype != np.bool_:
        operation.refuse("the condition must be boolean", code="invalid_onnx")
    sides = [operation.input(1), operation.input(2)]
    x = next(side for side in sides if isinstance(side, Activation))
    if any(isinstance(side, Activation) and side.rank != x.rank for side in sides):
        operation.refuse_batch("its inputs differ in rank")
    mask = sample_constant(operation, array, x)
    fixed: NDArray[np.float32] | None = None
    parts: list[Activation] = []
    for index, chosen in ((1, mask), (2, ~mask)):
        side = sides[index - 1]
        if isinstance(side, Activation):
            part = enlarged(operation, translation, side, chosen.shape)
            factor = translation.weight(operation, chosen.astype(np.float32))
            parts.append(translation.emit(operation, Multiply(factor), part))
            continue
        value = operation.constant(index)
        if value is None or value.dtype != np.float32:
            operation.refuse("a constant side must be float32", code="unsupported_dtype")
        try:
            fixed = np.where(chosen, sample_constant(operation, value, x), np.float32(0))
        except ValueError:
            operation.refuse(f"shapes {mask.shape} and {value.shape}", code="shape_mismatch")
    if fixed is None:
        first, second = parts
        if first.shape != second.shape:
            operation.refuse(
                f"shapes {first.shape} and {second.shape} differ", code="shape_mismatch"
            )
        return translation.emit(operation, Add(), first, second)
    (part,) = parts
    if not fixed.any():
        return part
    part = enlarged(operation, translation, part, fixed.shape)
    return translation.emit(operation, Shift(translation.weight(operation, fixed)), part)
