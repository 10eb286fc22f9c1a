"""Moves of numbers: reshape, permuted and repeated axes, places, padding. Exact in float32."""

from __future__ import annotations

import math

from torch import Tensor

from models.layers.base import Layer
from models.layers.kinds import Expand, Gather, Pad, Permute, Reshape
from workers.verification.backward.linear_form import LinearForm
from workers.verification.enclosure import Enclosure, box_to_ball
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.exact import EXACT, MOVES, moved
from workers.verification.layers.rules import BackwardState, Ball, Carried, LayerRules, nothing
from workers.verification.numerics import magnitude, raised, total
from workers.verification.rounding import Rounding

__all__ = ["RULES"]


def _reshape(state: BackwardState, index: int, step: GraphStep, rows: LinearForm) -> Carried:
    rows, source = rows.dense(), state.shape_of(step.sources[0])
    moved = LinearForm(rows.coefficients.reshape(-1, *source), source, rows.sample)
    return [moved], nothing(rows), nothing(rows)


def _permute(state: BackwardState, index: int, step: GraphStep, rows: LinearForm) -> Carried:
    op, rows, source = step.layer(Permute), rows.dense(), state.shape_of(step.sources[0])
    order = [op.axes.index(axis) + 1 for axis in range(len(op.axes))]
    flat = rows.coefficients.permute(0, *order)
    moved = LinearForm(flat.reshape(-1, *source), source, rows.sample)
    return [moved], nothing(rows), nothing(rows)


def _pad(state: BackwardState, index: int, step: GraphStep, rows: LinearForm) -> Carried:
    op, rows, source = step.layer(Pad), rows.dense(), state.shape_of(step.sources[0])
    flat, (top, left, _, _) = rows.coefficients, op.padding
    inner = flat[..., top : top + source[-2], left : left + source[-1]]
    gained = (total(flat) - total(inner)) * op.value
    size = magnitude(flat) * abs(op.value)
    return [LinearForm(inner.contiguous(), source, rows.sample)], gained, size


def _gather(state: BackwardState, index: int, step: GraphStep, rows: LinearForm) -> Carried:
    """Every place takes its coefficient back; places that nothing reads have 0."""
    op, rows, source = step.layer(Gather), rows.dense(), state.shape_of(step.sources[0])
    places = op.places.to(rows.coefficients.device)
    full = rows.coefficients.new_zeros(rows.coefficients.shape[0], *source)
    full.index_copy_(op.axis + 1, places, rows.coefficients)
    return [LinearForm(full, source, rows.sample)], nothing(rows), nothing(rows)


def _copies(layer: Expand, source: tuple[int, ...]) -> int:
    """How often each number stands in the result."""
    return math.prod(layer.shape) // math.prod(source)


def _expand(state: BackwardState, index: int, step: GraphStep, rows: LinearForm) -> Carried:
    """Every number takes the sum of its copies' coefficients, each rounded once on the way."""
    op, rows, source = step.layer(Expand), rows.dense(), state.shape_of(step.sources[0])
    axes = [axis + 1 for axis, size in enumerate(source) if size != op.shape[axis]]
    summed = LinearForm(rows.coefficients.sum(axes, keepdim=True), source, rows.sample)
    lost = nothing(rows)
    if state.rounding.is_sound:
        sizes = rows.coefficients.abs().sum(axes, keepdim=True)
        share = state.rounding.own_gamma(_copies(op, source))
        lost = magnitude(sizes * rows.pick(state.share_of(step.sources[0], 2 * share)))
    return [summed], -lost, lost


def _repeated(step: GraphStep, centre_norm: Tensor, rounding: Rounding) -> tuple[float, float]:
    """Every copy moves as far as the number."""
    return raised(math.sqrt(step.overlap)), 0.0


_COPIES = Ball(_repeated, reads_norm=False)


def _copied(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    (state,) = inputs
    result = moved(step, inputs, rounding)
    result.radius = _COPIES.grown(step, state.radius, state.radius, rounding)
    result.round = False
    return box_to_ball(result)


RULES: dict[type[Layer], LayerRules] = {
    Reshape: LayerRules(forward=moved, ball=EXACT, backward=_reshape, permutes=True, linear=MOVES),
    Permute: LayerRules(forward=moved, ball=EXACT, backward=_permute, permutes=True, linear=MOVES),
    Gather: LayerRules(forward=moved, ball=EXACT, backward=_gather, linear=MOVES),
    Expand: LayerRules(
        forward=_copied, ball=_COPIES, backward=_expand, linear=MOVES, overlap=_copies
    ),
    Pad: LayerRules(forward=moved, ball=EXACT, backward=_pad, linear=MOVES),
}
