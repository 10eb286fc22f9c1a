"""Euclidean norms of windows (l2 pooling), and sorted axes.

A norm is 1-Lipschitz in its window, and so is that of (x, sqrt(eps)); windows share no place, so
that all of them together are. Deployed it is the root of a float32 sum of n squares, by whatever
operators: every square meets at most n + ``MORE`` roundings, of which the root halves what comes
before it. Factors on the way stay between 2^-20 and 2^20 (``models.onnx.operators.euclidean``).
Squares lose below the least normal number, n of them at most the root of n times that, and 2^10
times as much where the least factor stood on them, at each of a few operators (``LOST``).
They overflow at 2^64, or at 2^54 under the largest factor, long before their root does: inputs must
stay below ``LARGEST``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.base import Layer
from models.layers.euclidean import L2Pool2d, Sort
from workers.verification.backward.linear_form import LinearForm
from workers.verification.enclosure import Enclosure, box_to_ball
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.exact import EXACT, monotone
from workers.verification.layers.pooling import CONSTANT_SHARE
from workers.verification.layers.rules import BackwardState, Ball, Carried, LayerRules
from workers.verification.numerics import (
    lost_in_norm,
    magnitude,
    nonzero,
    raised,
    rough_norm,
    total,
)
from workers.verification.rounding import Rounding

__all__ = ["RULES"]

#: Roundings of one square beside those of the sum: square, mean, factors, eps, the root.
MORE = 16
#: Norms of inputs up to which no sum of squares, times 2^20, overflows float32.
LARGEST = 1e15
#: What squares may lose under factors and sums on the way, in what they lose without.
LOST = 2.0**12


def _pool(step: GraphStep) -> L2Pool2d:
    layer = step.op
    if not isinstance(layer, L2Pool2d):
        raise TypeError(f"{step.kind} is no l2 pool")
    return layer


def _relative(layer: L2Pool2d, rounding: Rounding) -> float:
    """What both evaluations of one norm may be off by, relative to it."""
    terms = math.prod(layer.kernel) + MORE
    return rounding.deployed_gamma(terms) + rounding.own_gamma(terms)


def _lost(layer: L2Pool2d, rounding: Rounding) -> float:
    """What lost squares may take from one norm, here and there."""
    if not rounding.is_sound:
        return 0.0
    return LOST * lost_in_norm(math.prod(layer.kernel), torch.float32)


def _growth(step: GraphStep, centre_norm: Tensor, rounding: Rounding) -> tuple[float, Tensor]:
    """All norms together are at most |z| + the root of all eps."""
    layer = _pool(step)
    outputs = math.prod(step.shape)
    relative = _relative(layer, rounding)
    fixed = raised(relative * math.sqrt(outputs * layer.eps))
    fixed = fixed + raised(_lost(layer, rounding) * math.sqrt(outputs))
    return raised(1.0 + relative), raised(centre_norm * relative + fixed)


BALL = Ball(_growth, largest_input=LARGEST)


def _forward(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    """From the nearest to the farthest point of the box, window by window."""
    (state,) = inputs
    layer = _pool(step)
    norms = rough_norm(state.centre)
    radius = BALL.grown(step, state.radius, norms, rounding)
    centre = layer(state.centre)
    lower = upper = None
    size = norms + state.radius
    if state.lower is not None and state.upper is not None:
        zero = torch.zeros_like(state.lower)
        near = torch.maximum(torch.maximum(state.lower, -state.upper), zero)
        far = torch.maximum(state.lower.abs(), state.upper.abs())
        relative, lost = 4 * _relative(layer, rounding), 4 * _lost(layer, rounding)
        lower, upper = layer(near), layer(far)
        lower = (lower - relative * lower - lost).clamp_min(0.0)
        upper = upper + relative * upper + lost
        size = torch.fmin(size, raised(rough_norm(far)))
    valid = state.valid & (size < LARGEST) if rounding.is_sound else state.valid
    return box_to_ball(Enclosure(centre, radius, lower, upper, valid))


def _backward(state: BackwardState, index: int, step: GraphStep, rows: LinearForm) -> Carried:
    """|x| >= <x, a> / |a| for the box's middle a, from below; the farthest corner, from above."""
    layer, rows = _pool(step), rows.dense()
    lower, upper = state.box(step.sources[0])
    terms = 4 * math.prod(layer.kernel) + MORE
    middle = (lower + upper) * 0.5
    # Squares of the middle that are lost would make its slope longer than 1.
    below = lost_in_norm(math.prod(layer.kernel), state.dtype)
    norm = raised(layer(middle) + below, terms, state.dtype)
    highest = raised(layer(torch.maximum(lower.abs(), upper.abs())) + below, terms, state.dtype)
    positive = rows.coefficients.clamp_min(0.0)
    negative = rows.coefficients - positive
    share = positive / nonzero(rows.pick(norm))
    source = state.shape_of(step.sources[0])
    ones = share.new_ones(source[0], 1, *layer.kernel)
    spread = F.conv_transpose2d(share, ones, stride=layer.stride, groups=source[0])
    rest = (0, source[2] - spread.shape[3], 0, source[1] - spread.shape[2])
    result = LinearForm(F.pad(spread, rest) * rows.pick(middle), source, rows.sample)
    lost = total(-negative * rows.pick(highest))
    if state.rounding.is_sound:
        relative = 4 * _relative(layer, state.rounding)
        lost = lost + magnitude(rows.coefficients * rows.pick(highest)) * relative
        lost = lost + magnitude(rows.coefficients) * (4 * _lost(layer, state.rounding))
        lost = raised(lost, 31, state.dtype) + state.rounded(step.sources[0], result)
    return [result], -lost, lost


def _sorted_backward(
    state: BackwardState, index: int, step: GraphStep, rows: LinearForm
) -> Carried:
    """Of the i-th least number nothing but its box is kept."""
    rows, layer = rows.dense(), step.op
    if not isinstance(layer, Sort):
        raise TypeError(f"{step.kind} is no sorted axis")
    low, high = (layer(end) for end in state.box(step.sources[0]))
    positive = rows.coefficients.clamp_min(0.0)
    below, above = positive * rows.pick(low), (rows.coefficients - positive) * rows.pick(high)
    source = state.shape_of(step.sources[0])
    nowhere = rows.coefficients.new_zeros(rows.coefficients.shape[0], *source)
    size = (magnitude(below) + magnitude(above)) * CONSTANT_SHARE
    return [LinearForm(nowhere, source, rows.sample)], total(below) + total(above), size


RULES: dict[type[Layer], LayerRules] = {
    L2Pool2d: LayerRules(forward=_forward, ball=BALL, backward=_backward),
    # The i-th least number never falls where none of them does, and sorting brings no two apart.
    Sort: LayerRules(forward=monotone(EXACT), ball=EXACT, backward=_sorted_backward),
}
