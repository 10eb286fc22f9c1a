"""A number times a gate of itself: SiLU, GELU, HardSwish and Mish as exporters write them.

A product of two activations is read as (a x) (s G(x) + t), G the gate, a, s and t numbers. As two
values their product would be bounded as if x and its gate had nothing to do with each other. What
numbers and products round on the way is inside what the activation's rules allow
(``workers.verification.layers.smooth.curves``): a few roundings of the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.layers.activations import Abs, Clip, Sigmoid, Softplus, Tanh
from models.layers.curves import GELU, LARGEST_FACTOR, Erf, HardSwish, Mish, Power, Softsign
from models.layers.kinds import Add, Divide, Layer, Multiply, Shift
from models.onnx.graph import Activation, Operation, Translation
from models.onnx.operators.curved.native import scaled_silu, times

__all__ = ["divided", "gated"]

#: How far a number may be from the one that it stands for, relative: two roundings of float32 each.
ROUNDED = 2.0**-22


@dataclass(frozen=True)
class _Line:
    """scale ``of`` + shift."""

    of: Activation
    scale: float
    shift: float


def gated(
    operation: Operation, translation: Translation, x: Activation, y: Activation
) -> Activation | None:
    """The product of both as one activation, where one is a gate of the other; else None."""
    for value, other in ((x, y), (y, x)):
        factor, gate = _line(translation, value), _line(translation, other)
        if factor.shift or not (_moderate(factor.scale) and _moderate(gate.scale)):
            continue
        for read in (_silu, _gelu, _mish, _hard_swish):
            found = read(operation, translation, factor.of, gate, factor.scale * gate.scale)
            if found is not None:
                return found
    return None


def divided(
    operation: Operation, translation: Translation, x: Activation, y: Activation
) -> Activation | None:
    """x / (1 + |x|) as one Softsign; else None."""
    below = _line(translation, y)
    made = _of_line(translation, below.of, Abs)
    if made is None or (below.scale, below.shift) != (1.0, 1.0) or made[1] != _Line(x, 1.0, 0.0):
        return None
    if not isinstance(made[0], Abs) or made[0].channels is not None:
        return None
    return translation.emit(operation, Softsign(), x)


def _moderate(number: float) -> bool:
    return 1.0 / LARGEST_FACTOR <= abs(number) <= LARGEST_FACTOR


def _near(number: float, exact: float) -> bool:
    return abs(number - exact) <= ROUNDED * abs(exact)


def _origin(translation: Translation, value: Activation) -> tuple[Layer | None, list[Activation]]:
    layer, sources = translation.origins.get(value.name, (None, ()))
    return layer, list(sources)


def _line(translation: Translation, value: Activation) -> _Line:
    """The value as a number times and a number beside another one, as far as that goes.

    At most one of each, and both moderate: the roundings and the ranges of what is read as one
    activation are its own then. Two numbers may cancel each other and what is between them.
    """
    found, seen = _Line(value, 1.0, 0.0), set()
    while True:
        layer, sources = _origin(translation, found.of)
        if not isinstance(layer, Multiply | Divide | Shift):
            return found
        if layer.value.numel() != 1 or sources[0].shape != found.of.shape:
            return found
        number = float(layer.value.detach())
        if isinstance(layer, Shift) in seen or not _moderate(number):
            return found
        seen.add(isinstance(layer, Shift))
        if isinstance(layer, Shift):
            shift, scale = found.shift + found.scale * number, found.scale
        else:
            scale = found.scale / number if isinstance(layer, Divide) else found.scale * number
            shift = found.shift
        found = _Line(sources[0], scale, shift)


def _of_line(
    translation: Translation, value: Activation, kind: type[Layer]
) -> tuple[Layer, _Line] | None:
    """The layer of this kind that the value is the result of, and its input as a line."""
    layer, sources = _origin(translation, value)
    return (layer, _line(translation, sources[0])) if isinstance(layer, kind) else None


def _silu(
    operation: Operation, translation: Translation, x: Activation, gate: _Line, factor: float
) -> Activation | None:
    """factor x sigmoid(c x)."""
    made = _of_line(translation, gate.of, Sigmoid)
    if made is None or gate.shift:
        return None
    inner = made[1]
    if inner.of != x or inner.shift or not _moderate(inner.scale):
        return None
    return scaled_silu(operation, translation, x, inner.scale, factor)


def _gelu(
    operation: Operation, translation: Translation, x: Activation, gate: _Line, factor: float
) -> Activation | None:
    """factor x (1 + erf(x / sqrt 2)), or with the tanh in its place."""
    if gate.shift != gate.scale:
        return None
    made = _of_line(translation, gate.of, Erf)
    if made is not None:
        inner, form = made[1], "none"
        if inner.of != x or inner.shift or not _near(inner.scale, math.sqrt(0.5)):
            return None
    else:
        made = _of_line(translation, gate.of, Tanh)
        form = "tanh"
        if made is None or not _is_cubic(translation, x, made[1]):
            return None
    layer = translation.emit(operation, GELU(approximate=form), x)
    return times(operation, translation, layer, 2.0 * factor)


def _is_cubic(translation: Translation, x: Activation, inner: _Line) -> bool:
    """Whether it is sqrt(2 / pi) (x + 0.044715 x^3)."""
    layer, sources = _origin(translation, inner.of)
    if inner.shift or not isinstance(layer, Add):
        return False
    parts = [_line(translation, source) for source in sources]
    for linear, cubic in (parts, parts[::-1]):
        power = _of_line(translation, cubic.of, Power)
        if power is None or linear.of != x or power[1] != _Line(x, 1.0, 0.0):
            continue
        root = math.sqrt(2.0 / math.pi)
        return (
            isinstance(power[0], Power)
            and power[0].exponent == 3
            and linear.shift == cubic.shift == 0.0
            and _near(inner.scale * linear.scale, root)
            and _near(inner.scale * cubic.scale, 0.044715 * root)
        )
    return False


def _mish(
    operation: Operation, translation: Translation, x: Activation, gate: _Line, factor: float
) -> Activation | None:
    """factor x tanh(softplus(x))."""
    made = _of_line(translation, gate.of, Tanh)
    if made is None or gate.shift or made[1].scale != 1.0 or made[1].shift:
        return None
    soft = _of_line(translation, made[1].of, Softplus)
    if soft is None or soft[1] != _Line(x, 1.0, 0.0):
        return None
    return times(operation, translation, translation.emit(operation, Mish(), x), factor)


def _hard_swish(
    operation: Operation, translation: Translation, x: Activation, gate: _Line, factor: float
) -> Activation | None:
    """factor x min(max(c x + d, 0), high), c / high = 1/6 and d / high = 1/2."""
    made = _of_line(translation, gate.of, Clip)
    if made is None or gate.shift:
        return None
    clip, inner = made
    if not isinstance(clip, Clip) or clip.low != 0.0 or not clip.high or inner.of != x:
        return None
    high = clip.high
    if not (_near(inner.scale / high, 1.0 / 6.0) and _near(inner.shift / high, 0.5)):
        return None
    if not _moderate(high):
        return None
    layer = translation.emit(operation, HardSwish(), x)
    return times(operation, translation, layer, factor * high)
