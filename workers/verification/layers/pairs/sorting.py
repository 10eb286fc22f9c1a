"""Layers that compare two values: Maximum, Minimum and MaxMin (GroupSort-2 on channel pairs).

Rows go back through planes below and above max(a, b) or min(a, b) for two values in boxes of their
own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.activations import MaxMin
from models.layers.base import Layer
from models.layers.joins import Maximum, Minimum
from workers.verification.backward.linear_form import LinearForm
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.clamp import clamped_slopes
from workers.verification.layers.exact import EXACT, EXACT_JOIN, monotone
from workers.verification.layers.pairs.differences import SORTED
from workers.verification.layers.rules import BackwardState, Box, Carried, LayerRules
from workers.verification.numerics import raised, slack, total
from workers.verification.rounding import Rounding

__all__ = ["RULES", "Planes", "maximum_planes", "minimum_planes", "paired_slopes"]


@dataclass
class Planes:
    """Elementwise planes over two boxes, [batch, *shape] each:

    lower_first a + lower_second b + lower_intercept <= f(a, b), and upper likewise.
    Intercepts are <= 0 below and >= 0 above.
    """

    lower_first: Tensor
    lower_second: Tensor
    lower_intercept: Tensor
    upper_first: Tensor
    upper_second: Tensor
    upper_intercept: Tensor


def _undecided(low_a: Tensor, high_a: Tensor, low_b: Tensor, high_b: Tensor) -> Tensor:
    """Where neither value is the larger one throughout."""
    return (low_a < high_b) & (low_b < high_a)


def maximum_planes(
    low_a: Tensor, high_a: Tensor, low_b: Tensor, high_b: Tensor, rounding: Rounding
) -> Planes:
    """Planes of max(a, b), exact where one value is the larger one throughout.

    Below: the value whose box lies higher. Above: b + (chord of relu over a - b), with any two
    coefficients: max(a, b) - s a - t b is convex, so that its maximum over the boxes is at one of
    the four corners, where it is evaluated and rounded up.
    """
    first = low_a >= high_b
    second = (low_b >= high_a) & ~first
    one, zero = torch.ones_like(low_a), torch.zeros_like(low_a)
    higher = first | (~second & (low_a + high_a >= low_b + high_b))
    lower_first = torch.where(higher, one, zero)
    most, least = high_a - low_b, low_a - high_b
    open_ = ~first & ~second
    share = (most / torch.where(open_, most - least, one)).nan_to_num(0.5).clamp(0.0, 1.0)
    s = torch.where(open_, share, torch.where(first, one, zero))
    t = 1.0 - s
    corners = [
        torch.maximum(a, b) - s * a - t * b for a in (low_a, high_a) for b in (low_b, high_b)
    ]
    reach = torch.maximum(low_a.abs(), high_a.abs()) + torch.maximum(low_b.abs(), high_b.abs())
    above = (torch.stack(corners).amax(0) + slack(reach, 8 * rounding.own, rounding)).clamp_min(0.0)
    return Planes(lower_first, one - lower_first, zero, s, t, torch.where(open_, above, zero))


def minimum_planes(
    low_a: Tensor, high_a: Tensor, low_b: Tensor, high_b: Tensor, rounding: Rounding
) -> Planes:
    """Planes of min(a, b) = -max(-a, -b)."""
    twin = maximum_planes(-high_a, -low_a, -high_b, -low_b, rounding)
    return Planes(
        twin.upper_first,
        twin.upper_second,
        -twin.upper_intercept,
        twin.lower_first,
        twin.lower_second,
        -twin.lower_intercept,
    )


def _pair(state: BackwardState, index: int, step: GraphStep, rows: LinearForm) -> Carried:
    """max or min of two values: the plane below for coefficients > 0, the one above for others."""
    planes = _planes(state, index, step)
    positive = rows.coefficients.clamp_min(0.0)
    negative = rows.coefficients - positive
    first, second = (
        rows.with_coefficients(positive * rows.pick(below) + negative * rows.pick(above))
        for below, above in (
            (planes.lower_first, planes.upper_first),
            (planes.lower_second, planes.upper_second),
        )
    )
    lost = _lost(state, positive, negative, rows, planes)
    lost = lost + state.rounded(step.sources[0], first)
    lost = lost + state.rounded(step.sources[1], second)
    return [first, second], -lost, lost


def _maxmin(state: BackwardState, index: int, step: GraphStep, rows: LinearForm) -> Carried:
    """p max(a, b) + q min(a, b) = q (a + b) + (p - q) max(a, b): one relaxation for each pair."""
    planes = _planes(state, index, step)
    p, q = rows.coefficients.chunk(2, dim=1)
    d = p - q
    positive = d.clamp_min(0.0)
    negative = d - positive
    first = q + positive * rows.pick(planes.lower_first) + negative * rows.pick(planes.upper_first)
    second = (
        q + positive * rows.pick(planes.lower_second) + negative * rows.pick(planes.upper_second)
    )
    # Difference, product and sum each lose at most one roundoff of |q| + |d|, which may cancel.
    size = q.abs() + d.abs()
    lost = _lost(state, positive, negative, rows, planes)
    magnitude = rows.with_coefficients(torch.cat([size, size], dim=1))
    lost = lost + state.rounded(step.sources[0], magnitude)
    return [rows.with_coefficients(torch.cat([first, second], dim=1))], -lost, lost


def _lost(
    state: BackwardState, positive: Tensor, negative: Tensor, rows: LinearForm, planes: Planes
) -> Tensor:
    """What the planes' intercepts cost, [rows] >= 0, rounded up."""
    lost = total(-negative * rows.pick(planes.upper_intercept))
    lost = lost + total(-positive * rows.pick(planes.lower_intercept))
    return raised(lost, 31, state.dtype) if state.rounding.is_sound else lost


def _halves(box: Box) -> tuple[Box, Box]:
    low_a, low_b = box[0].chunk(2, dim=1)
    high_a, high_b = box[1].chunk(2, dim=1)
    return (low_a, high_a), (low_b, high_b)


def _planes(state: BackwardState, index: int, step: GraphStep) -> Planes:
    if index not in state.made:
        boxes = [state.box(source) for source in step.sources]
        first, second = _halves(boxes[0]) if len(boxes) == 1 else boxes
        make = minimum_planes if isinstance(step.op, Minimum) else maximum_planes
        state.made[index] = make(*first, *second, state.rounding)
    planes: Planes = state.made[index]
    return planes


def paired_slopes(
    centre: Tensor, lower: Tensor, upper: Tensor, ceiling: Tensor, floor: Tensor
) -> Tensor:
    """One slope for both of a pair (c, c + C/2), for A = min(max(a, b), M), B = max(min(a, b), N).

    Maximum and minimum together move a pair (a, b) by no more than it moves itself (GroupSort is
    1-Lipschitz), so in the norm of the pair |(A, B) - (A0, B0)| <= max(s_A, s_B) |(a, b) - (a0,
    b0)| with the slopes of the two clamps over the boxes of maximum and minimum.

    Where both are constant over the box, both rows vanish. ceiling M, floor N: broadcastable to
    half the channels, infinite for the plain MaxMin, whose slopes are 1: what cannot change there
    has a box without width, so that its columns in the next map are masked anyway.
    """
    centres, lowers, uppers = (x.chunk(2, dim=1) for x in (centre, lower, upper))
    top = torch.maximum(*centres)
    bottom = torch.minimum(*centres)
    infinite = torch.full_like(top, torch.inf)
    above = clamped_slopes(
        top,
        torch.maximum(*lowers),
        torch.maximum(*uppers),
        -infinite,
        ceiling.to(top).expand_as(top),
    )
    below = clamped_slopes(
        bottom,
        torch.minimum(*lowers),
        torch.minimum(*uppers),
        floor.to(bottom).expand_as(bottom),
        infinite,
    )
    slope = torch.maximum(above, below)
    return torch.cat([slope, slope], dim=1)


def _maxmin_slopes(layer: MaxMin, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    infinite = centre.new_tensor(torch.inf)
    return paired_slopes(centre, lower, upper, infinite, -infinite)


def _open(layer: Layer, boxes: list[Box]) -> Tensor:
    return _undecided(*boxes[0], *boxes[1])


def _open_pairs(layer: MaxMin, boxes: list[Box]) -> Tensor:
    first, second = _halves(boxes[0])
    pairs = _undecided(*first, *second)
    return torch.cat([pairs, pairs], dim=1)


_TWO = LayerRules(
    forward=monotone(EXACT_JOIN),
    ball=EXACT_JOIN,
    backward=_pair,
    open=_open,
    differences=SORTED,
)

RULES: dict[type[Layer], LayerRules] = {
    Maximum: _TWO,
    Minimum: _TWO,
    MaxMin: LayerRules(
        forward=monotone(EXACT),
        ball=EXACT,
        slopes=_maxmin_slopes,
        backward=_maxmin,
        open=_open_pairs,
        differences=SORTED,
    ),
}
