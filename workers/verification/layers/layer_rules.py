"""Ball and box through the layers that are not affine: one rule per layer, one row in ``RULES``.

Each rule returns an enclosure of every deployed float32 value (see ``enclosure``). Layers that only
choose among their inputs' numbers and constants are exact in float32; where they are monotone too,
the box goes through the layer itself (methods-lipschitz 1.2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.layers.activations import MaxMin, Sigmoid, Tanh
from models.layers.joins import Concat, Maximum, Minimum, Slice
from models.layers.kinds import Add, Layer, LeakyReLU, MaxPool2d, Pad, Permute, ReLU, Reshape
from workers.verification.forward.ball import (
    Enclosure,
    box_to_ball,
    grown,
    joined_radius,
)
from workers.verification.graph.compiled_network import GraphStep
from workers.verification.layers.clamp import LIMITS, clamp
from workers.verification.layers.s_shaped import S_SHAPED, s_shaped, s_shaped_error
from workers.verification.numerics import rough_norm
from workers.verification.rounding import FLOAT32_MAX, Rounding

__all__ = ["RULES", "Rule", "apply_layer"]


def apply_layer(layer: Layer, *inputs: Tensor) -> Tensor:
    """The layer's value in the inputs' dtype, on their device."""
    if type(layer) in LIMITS:
        return clamp(layer, *inputs)
    if type(layer) in S_SHAPED:
        return s_shaped(layer, *inputs)
    result: Tensor = layer(*inputs)
    return result


def _relu(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    (state,) = inputs
    if state.lower is None or state.upper is None:
        return Enclosure(torch.relu(state.centre), state.radius, None, None, state.valid)
    result = Enclosure(
        torch.relu(state.centre),
        state.radius,
        torch.relu(state.lower),
        torch.relu(state.upper),
        state.valid,
    )
    return box_to_ball(result)


def _leaky_relu(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    (state,) = inputs
    layer = step.op
    assert isinstance(layer, LeakyReLU)
    both = 3 * (rounding.deployed + rounding.own)
    tiny = 4 * rounding.underflow
    centre = layer(state.centre)
    radius = grown(step, state.radius, rough_norm(state.centre), rounding)
    lower = upper = None
    if state.lower is not None and state.upper is not None:
        lower, upper = layer(state.lower), layer(state.upper)
        lower = lower - both * lower.clamp_max(0.0).abs() - tiny * (lower < 0)
        upper = upper + both * upper.clamp_max(0.0).abs() + tiny * (upper < 0)
    return box_to_ball(Enclosure(centre, radius, lower, upper, state.valid))


def _max_pool(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    (state,) = inputs
    layer = step.op
    assert isinstance(layer, MaxPool2d)
    lower = None if state.lower is None else layer(state.lower)
    upper = None if state.upper is None else layer(state.upper)
    radius = grown(step, state.radius, state.radius, rounding)
    result = Enclosure(layer(state.centre), radius, lower, upper, state.valid)
    return box_to_ball(result)


def _add(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    first, second = inputs
    both = 3 * (rounding.deployed + rounding.own)
    centre = first.centre + second.centre
    norms = rough_norm(first.centre) + rough_norm(second.centre)
    radius = grown(step, joined_radius(step, [first.radius, second.radius]), norms, rounding)
    lower = upper = None
    if first.lower is not None and second.lower is not None:
        assert first.upper is not None
        assert second.upper is not None
        lower, upper = first.lower + second.lower, first.upper + second.upper
        if both > 0.0:
            low = first.lower.abs() + second.lower.abs()
            high = first.upper.abs() + second.upper.abs()
            slack = torch.maximum(low, high) * both
            lower, upper = lower - slack, upper + slack
    valid = first.valid & second.valid
    if rounding.is_sound:
        size = norms + first.radius + second.radius
        if lower is not None and upper is not None:
            largest = torch.maximum(lower.abs(), upper.abs()).flatten(1).amax(1)
            size = torch.minimum(size, largest.to(torch.float64) * 1.01)
        valid = valid & (size < FLOAT32_MAX)
    return Enclosure(centre, radius, lower, upper, valid)


def _exact(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    """Reshape, permutation, slices, padding with a constant: the same numbers elsewhere."""
    (state,) = inputs
    layer = step.op
    assert isinstance(layer, Layer)
    return Enclosure(
        layer(state.centre),
        state.radius,
        None if state.lower is None else layer(state.lower),
        None if state.upper is None else layer(state.upper),
        state.valid,
        state.round,
    )


def _monotone(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    """Exact in float32 and monotone in every input: clamps, MaxMin, maxima, joins and cuts."""
    layer = step.op
    assert isinstance(layer, Layer)
    lower = [state.lower for state in inputs if state.lower is not None]
    upper = [state.upper for state in inputs if state.upper is not None]
    boxed = len(lower) == len(inputs)
    joined = joined_radius(step, [state.radius for state in inputs])
    result = Enclosure(
        apply_layer(layer, *(state.centre for state in inputs)),
        grown(step, joined, joined, rounding),
        apply_layer(layer, *lower) if boxed else None,
        apply_layer(layer, *upper) if boxed else None,
        torch.stack([state.valid for state in inputs]).all(0),
    )
    return box_to_ball(result)


def _s_shaped(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    """Sigmoid, tanh: monotone in real arithmetic, the kernel's error and ours on top."""
    (state,) = inputs
    layer = step.op
    assert isinstance(layer, Layer)
    error = s_shaped_error(rounding)
    lower = None if state.lower is None else s_shaped(layer, state.lower) - error
    upper = None if state.upper is None else s_shaped(layer, state.upper) + error
    radius = grown(step, state.radius, state.radius, rounding)
    return box_to_ball(Enclosure(s_shaped(layer, state.centre), radius, lower, upper, state.valid))


Rule = Callable[[GraphStep, list[Enclosure], Rounding], Enclosure]

#: One rule per layer; a new layer is one rule and one row.
RULES: dict[type[Layer], Rule] = {
    ReLU: _relu,
    LeakyReLU: _leaky_relu,
    MaxPool2d: _max_pool,
    Add: _add,
    Reshape: _exact,
    Permute: _exact,
    Pad: _exact,
    Slice: _exact,
    Concat: _monotone,
    Maximum: _monotone,
    Minimum: _monotone,
    MaxMin: _monotone,
    Sigmoid: _s_shaped,
    Tanh: _s_shaped,
    **dict.fromkeys(LIMITS, _monotone),
}
