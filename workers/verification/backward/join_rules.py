"""Backward rules of the layers that join, cut and sort values: one rule, one row in ``JOINS``.

Each returns the coefficients on the step's inputs, what the constant gains, and its magnitude, as
``BackwardPass`` adds them up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.layers.activations import MaxMin
from models.layers.joins import Concat, Maximum, Minimum, Slice
from models.layers.kinds import Layer
from workers.verification.backward.linear_form import LinearForm
from workers.verification.graph.compiled_network import GraphStep
from workers.verification.layers.planes import Planes, maximum_planes, minimum_planes, undecided
from workers.verification.numerics import total
from workers.verification.rounding import unit_roundoff

if TYPE_CHECKING:
    from workers.verification.backward.backward_pass import BackwardPass

__all__ = ["JOINS", "open_pairs"]

Through = tuple[list[LinearForm], Tensor, Tensor]
Box = tuple[Tensor, Tensor]


def _nothing(rows: LinearForm) -> Tensor:
    return torch.zeros((), dtype=torch.float64, device=rows.coefficients.device)


def _concat(backward: BackwardPass, index: int, step: GraphStep, rows: LinearForm) -> Through:
    """Each input takes its own part of the coefficients."""
    assert isinstance(step.op, Concat)
    rows, axis = rows.dense(), step.op.axis
    shapes = [backward.shape_of(source) for source in step.sources]
    parts = rows.coefficients.split([shape[axis] for shape in shapes], dim=axis + 1)
    split = [
        LinearForm(part.contiguous(), shape, rows.sample)
        for part, shape in zip(parts, shapes, strict=True)
    ]
    return split, _nothing(rows), _nothing(rows)


def _slice(backward: BackwardPass, index: int, step: GraphStep, rows: LinearForm) -> Through:
    """The places that are cut away have the coefficient 0."""
    layer = step.op
    assert isinstance(layer, Slice)
    rows = rows.dense()
    shape = backward.shape_of(step.sources[0])
    full = rows.coefficients.new_zeros(rows.coefficients.shape[0], *shape)
    cuts = [slice(None)] * (layer.axis + 1)
    full[(*cuts, slice(layer.start, layer.stop, layer.step))] = rows.coefficients
    return [LinearForm(full, shape, rows.sample)], _nothing(rows), _nothing(rows)


def _pair(backward: BackwardPass, index: int, step: GraphStep, rows: LinearForm) -> Through:
    """max or min of two values: the plane below for coefficients > 0, the one above for others."""
    planes = _planes(backward, index, step)
    positive = rows.coefficients.clamp_min(0.0)
    negative = rows.coefficients - positive
    first, second = (
        rows.with_coefficients(positive * rows.pick(below) + negative * rows.pick(above))
        for below, above in (
            (planes.lower_first, planes.upper_first),
            (planes.lower_second, planes.upper_second),
        )
    )
    lost = _lost(backward, positive, negative, rows, planes)
    lost = lost + backward.rounded(step.sources[0], first)
    lost = lost + backward.rounded(step.sources[1], second)
    return [first, second], -lost, lost


def _maxmin(backward: BackwardPass, index: int, step: GraphStep, rows: LinearForm) -> Through:
    """p max(a, b) + q min(a, b) = q (a + b) + (p - q) max(a, b): one relaxation for each pair."""
    planes = _planes(backward, index, step)
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
    lost = _lost(backward, positive, negative, rows, planes)
    magnitude = rows.with_coefficients(torch.cat([size, size], dim=1))
    lost = lost + backward.rounded(step.sources[0], magnitude)
    return [rows.with_coefficients(torch.cat([first, second], dim=1))], -lost, lost


def _lost(
    backward: BackwardPass, positive: Tensor, negative: Tensor, rows: LinearForm, planes: Planes
) -> Tensor:
    """What the planes' intercepts cost, [rows] >= 0, rounded up."""
    lost = total(-negative * rows.pick(planes.upper_intercept))
    lost = lost + total(-positive * rows.pick(planes.lower_intercept))
    return lost * (1.0 + 64 * unit_roundoff(backward.dtype) * backward.rounding.is_sound)


def _halves(box: Box) -> tuple[Box, Box]:
    low_a, low_b = box[0].chunk(2, dim=1)
    high_a, high_b = box[1].chunk(2, dim=1)
    return (low_a, high_a), (low_b, high_b)


def _planes(backward: BackwardPass, index: int, step: GraphStep) -> Planes:
    if index not in backward.planes:
        boxes = [backward.box(source) for source in step.sources]
        first, second = _halves(boxes[0]) if isinstance(step.op, MaxMin) else boxes
        make = minimum_planes if isinstance(step.op, Minimum) else maximum_planes
        backward.planes[index] = make(*first, *second, backward.rounding)
    return backward.planes[index]


def open_pairs(layer: Layer, boxes: list[Box]) -> Tensor | None:
    """Where tighter boxes of the inputs would make a maximum tighter, [batch, *shape of an input].

    None: the layer compares nothing.
    """
    if isinstance(layer, Maximum | Minimum):
        return undecided(*boxes[0], *boxes[1])
    if isinstance(layer, MaxMin):
        first, second = _halves(boxes[0])
        pairs = undecided(*first, *second)
        return torch.cat([pairs, pairs], dim=1)
    return None


#: One row per layer.
JOINS: dict[type[Layer], Callable[[BackwardPass, int, GraphStep, LinearForm], Through]] = {
    Concat: _concat,
    Slice: _slice,
    Maximum: _pair,
    Minimum: _pair,
    MaxMin: _maxmin,
}
