"""Joins and cuts: the sum of two values, concatenation along an axis, slices."""

from __future__ import annotations

import torch

from models.layers.base import Layer
from models.layers.joins import Concat, Slice
from models.layers.kinds import Add
from workers.verification.backward.linear_form import LinearForm
from workers.verification.enclosure import Enclosure
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
    Carried,
    LayerRules,
    LinearPart,
    nothing,
    plain_value,
)
from workers.verification.numerics import ROOM, product_magnitude, rough_norm
from workers.verification.rounding import Rounding, overflow_ceiling

__all__ = ["RULES"]


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
    Concat: LayerRules(
        forward=monotone(EXACT_JOIN), ball=EXACT_JOIN, backward=_concat, linear=MOVES
    ),
    Slice: LayerRules(forward=moved, ball=EXACT, backward=_slice, linear=MOVES),
}
