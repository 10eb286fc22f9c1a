"""Moves of numbers: reshape, permuted axes, places of an axis, padding. Exact in float32."""

from __future__ import annotations

from models.layers.base import Layer
from models.layers.kinds import Gather, Pad, Permute, Reshape
from workers.verification.backward.linear_form import LinearForm
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.exact import EXACT, MOVES, moved
from workers.verification.layers.rules import BackwardState, Carried, LayerRules, nothing
from workers.verification.numerics import magnitude, total

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


RULES: dict[type[Layer], LayerRules] = {
    Reshape: LayerRules(forward=moved, ball=EXACT, backward=_reshape, permutes=True, linear=MOVES),
    Permute: LayerRules(forward=moved, ball=EXACT, backward=_permute, permutes=True, linear=MOVES),
    Gather: LayerRules(forward=moved, ball=EXACT, backward=_gather, linear=MOVES),
    Pad: LayerRules(forward=moved, ball=EXACT, backward=_pad, linear=MOVES),
}
