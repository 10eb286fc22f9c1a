"""Joins and cuts: sum and product of two values, concatenation along an axis, slices.

Of a product, (x - m)(y - n) is within r s of 0 for boxes m -+ r and n -+ s: x y lies between two
parallel planes (McCormick 1976: the means of his two from either side), 2 r s apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.joins import Concat, Product, Slice
from models.layers.kinds import Add
from workers.verification.backward.linear_form import LinearForm
from workers.verification.enclosure import Enclosure, box_to_ball
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.exact import (
    EXACT,
    EXACT_JOIN,
    MOVES,
    ONE_ROUNDING,
    monotone,
    moved,
)
from workers.verification.layers.rules import (
    BackwardState,
    Box,
    Carried,
    LayerRules,
    LinearPart,
    nothing,
    plain_value,
)
from workers.verification.numerics import (
    MANY,
    ROOM,
    magnitude,
    product_magnitude,
    raised,
    rough_norm,
    slack,
    total,
)
from workers.verification.rounding import Rounding, overflow_ceiling, unit_roundoff

__all__ = ["RULES"]

#: Product of two widths from which tighter boxes matter.
OPEN = 1e-4


def _add_forward(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    first, second = inputs
    once = rounding.single_operation
    centre = first.centre + second.centre
    norms = rough_norm(first.centre) + rough_norm(second.centre)
    radius = ONE_ROUNDING.grown(
        step, ONE_ROUNDING.join.radius([first.radius, second.radius]), norms, rounding
    )
    lower = upper = None
    if first.lower is not None and second.lower is not None:
        assert first.upper is not None
        assert second.upper is not None
        lower, upper = first.lower + second.lower, first.upper + second.upper
        if once > 0.0:
            low = first.lower.abs() + second.lower.abs()
            high = first.upper.abs() + second.upper.abs()
            slack = torch.maximum(low, high) * once
            lower, upper = lower - slack, upper + slack
    valid = first.valid & second.valid
    if rounding.is_sound:
        size = norms + first.radius + second.radius
        if lower is not None and upper is not None:
            largest = torch.maximum(lower.abs(), upper.abs()).flatten(1).amax(1)
            size = torch.minimum(size, largest.to(torch.float64))
        valid = valid & (size < overflow_ceiling(2))
    return Enclosure(centre, radius, lower, upper, valid)


def _add_backward(state: BackwardState, index: int, step: GraphStep, rows: LinearForm) -> Carried:
    size = nothing(rows)
    if state.rounding.is_sound:
        once = state.rounding.single_operation * ROOM
        share = rows.pick(state.share_of(index + 1, once))
        size = product_magnitude(rows.coefficients, share)
    return [rows, rows], -size, size


def _product_forward(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    """The extremes are at corners. |x y - a b| <= |y| |x - a| + |a| |y - b|, with the largest |y|
    and |a| there are; one rounding here and there."""
    first, second = inputs
    once = rounding.single_operation
    norms = [rough_norm(state.centre) for state in inputs]
    sizes = [raised(norm + state.radius) for norm, state in zip(norms, inputs, strict=True)]
    lower = upper = None
    if first.lower is not None and second.lower is not None:
        lower, upper = product_image([_ends(state) for state in inputs])
        lost = torch.maximum(lower.abs(), upper.abs()) * once + 4 * rounding.underflow
        lower, upper = lower - lost, upper + lost
        for place, state in enumerate(inputs):
            low, high = _ends(state)
            largest = torch.maximum(low.abs(), high.abs()).flatten(1).amax(1)
            sizes[place] = torch.fmin(sizes[place], largest.to(torch.float64))
    at_first = first.centre.abs().flatten(1).amax(1).to(torch.float64)
    moved = sizes[1] * first.radius + at_first * second.radius
    lost = once * sizes[1] * (norms[0] + first.radius)
    lost = lost + 4 * rounding.underflow * torch.Size(step.shape).numel() ** 0.5
    radius = raised(moved + lost, MANY)
    unknown = torch.isinf(first.radius) | torch.isinf(second.radius)
    radius = torch.where(unknown, torch.inf, radius)
    valid = first.valid & second.valid
    if rounding.is_sound:
        valid = valid & (raised(sizes[0] * sizes[1]) < overflow_ceiling(2))
    centre = first.centre * second.centre
    return box_to_ball(Enclosure(centre, radius, lower, upper, valid))


def _ends(state: Enclosure) -> Box:
    if state.lower is None or state.upper is None:
        raise ValueError("a value without a box")
    return state.lower, state.upper


def product_image(boxes: list[Box]) -> Box:
    """The image of two boxes in real arithmetic."""
    (a, b), (c, d) = boxes
    corners = torch.stack([a * c, a * d, b * c, b * d])
    return corners.amin(0), corners.amax(0)


def _image(layer: Product, boxes: list[Box]) -> Box:
    return product_image(boxes)


def _product_open(layer: Product, boxes: list[Box]) -> Tensor:
    """Where both values move."""
    (a, b), (c, d) = boxes
    return (b - a) * (d - c) > OPEN


def _product_backward(
    state: BackwardState, index: int, step: GraphStep, rows: LinearForm
) -> Carried:
    """n x + m y - m n -+ r s, for the computed middles m and n: r and s are the distances from
    there to the farther ends."""
    boxes = [state.box(source) for source in step.sources]
    middles = [0.5 * low + 0.5 * high for low, high in boxes]
    halves = [
        torch.maximum(high - middle, middle - low)
        for middle, (low, high) in zip(middles, boxes, strict=True)
    ]
    (m, n), (r, s) = middles, halves
    first = rows.with_coefficients(rows.coefficients * rows.pick(n))
    second = rows.with_coefficients(rows.coefficients * rows.pick(m))
    gap = raised(r * s, 8, state.dtype)
    size = (m.abs() + r) * (n.abs() + s)
    if state.rounding.is_sound:
        once = state.rounding.single_operation * ROOM
        gap = gap + slack(size, once, state.rounding) + 4 * state.rounding.underflow
    lost = magnitude(rows.coefficients * rows.pick(gap))
    constant = -total(rows.coefficients * rows.pick(m * n))
    lost = lost + state.rounded(step.sources[0], first) + state.rounded(step.sources[1], second)
    if state.rounding.is_sound:
        # Of the constant: two products, each rounded once.
        share = 8 * unit_roundoff(state.dtype)
        lost = lost + magnitude(rows.coefficients * rows.pick(slack(size, share, state.rounding)))
    held = magnitude(rows.coefficients * rows.pick(size))
    return [first, second], constant - lost, held + lost


def _concat(state: BackwardState, index: int, step: GraphStep, rows: LinearForm) -> Carried:
    """Each input takes its own part of the coefficients."""
    rows, axis = rows.dense(), step.layer(Concat).axis
    shapes = [state.shape_of(source) for source in step.sources]
    parts = rows.coefficients.split([shape[axis] for shape in shapes], dim=axis + 1)
    split = [
        LinearForm(part.contiguous(), shape, rows.sample)
        for part, shape in zip(parts, shapes, strict=True)
    ]
    return split, nothing(rows), nothing(rows)


def _slice(state: BackwardState, index: int, step: GraphStep, rows: LinearForm) -> Carried:
    """The places that are cut away have the coefficient 0."""
    layer = step.layer(Slice)
    rows = rows.dense()
    shape = state.shape_of(step.sources[0])
    full = rows.coefficients.new_zeros(rows.coefficients.shape[0], *shape)
    cuts = [slice(None)] * (layer.axis + 1)
    full[(*cuts, slice(layer.start, layer.stop, layer.step))] = rows.coefficients
    return [LinearForm(full, shape, rows.sample)], nothing(rows), nothing(rows)


RULES: dict[type[Layer], LayerRules] = {
    Add: LayerRules(
        forward=_add_forward,
        ball=ONE_ROUNDING,
        backward=_add_backward,
        linear=LinearPart(plain_value, rounds=True),
        absorbs_rounding=True,
    ),
    Product: LayerRules(
        forward=_product_forward,
        image=_image,
        backward=_product_backward,
        open=_product_open,
    ),
    Concat: LayerRules(
        forward=monotone(EXACT_JOIN), ball=EXACT_JOIN, backward=_concat, linear=MOVES
    ),
    Slice: LayerRules(forward=moved, ball=EXACT, backward=_slice, linear=MOVES),
}
