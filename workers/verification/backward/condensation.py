"""A sample's network condensed to its unstable neurons, for bounds that are computed many times.

Over the region of one sample most neurons are stable: a ReLU that is always active passes its
input, one that never is passes 0. So every other neuron, called a unit here, is ONE linear function
of the input and of the units before it:

    z'_u = W_u . (x', a') + b_u + e_u,     |e_u| <= d_u,

where z' and a' are the DEPLOYED values before and after the activation, at every input of the
region and in every order of summation. W and b are float64 numbers, taken as exact from here on; d
holds the rounding of all deployed steps that were passed on the way, as ``BackwardPass`` counts it,
and that of computing W and b. Layers of lines other than ReLU have all their neurons as units; of
layers that are neither linear nor of lines (pools, sorted pairs) every result is a unit of which
nothing but its box is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.verification.backward.adjoint import adjoint
from workers.verification.backward.backward_pass import BackwardPass
from workers.verification.backward.linear_form import LinearForm
from workers.verification.graph.affine import Affine
from workers.verification.graph.graph_step import GraphStep, UnsupportedLayer
from workers.verification.layers.registry import rules_of
from workers.verification.numerics import (
    LONGEST_SUM,
    magnitude,
    quick_total,
    raised,
    rounding_error,
    sum_error,
)

__all__ = ["CondensedRows", "RowsOverflow", "Units", "condense", "units_of"]


class RowsOverflow(ArithmeticError):
    """Coefficients on the way are beyond float64: what they stand for is not known."""


@dataclass(frozen=True)
class Units:
    """The units of one step: ``places`` [n] in its flattened result, ``columns`` among all units.

    through [1, *shape]: 1 where the result is the input itself; 0 where it is a unit, or always 0.
    lines: whether the layer has lines around it; else a unit has its box alone.
    splits: whether on either side of 0 the layer is exactly its input, or exactly 0.
    """

    step: int
    columns: slice
    places: Tensor
    through: Tensor
    lines: bool
    splits: bool


@dataclass(frozen=True)
class CondensedRows:
    """Linear functions of input and units: weight [n, inputs + units], constant, error [n], all
    float64: the function is weight . (x', a') + constant, up to ``error`` either way."""

    weight: Tensor
    constant: Tensor
    error: Tensor


def units_of(backward: BackwardPass) -> list[Units]:
    """The units of every step of lines, over the boxes of ``backward``, which has one sample."""
    found, start = [], 0
    for index, step in enumerate(backward.compiled.steps):
        rules = rules_of(step.op)
        if isinstance(step.op, Affine) or rules.linear is not None:
            continue
        lines = rules.relax is not None
        lower, upper = backward.box(step.sources[0] if lines else index + 1)
        # What is not a number is no reason to call a neuron stable.
        stable = ((lower >= 0) | (upper <= 0)) & rules.splits
        places = (~stable).flatten().nonzero().flatten()
        through = (stable & (lower >= 0)).to(backward.dtype)
        columns = slice(start, start + places.numel())
        found.append(Units(index, columns, places, through, lines, rules.splits))
        start = columns.stop
    return found


def condense(
    backward: BackwardPass, units: list[Units], value: int, rows: LinearForm
) -> CondensedRows:
    """``rows`` . value as functions of the input and of the units.

    As ``BackwardPass.lower_bound``, from both sides at once, and no line is needed: coefficients of
    units are written down where they are met. Raises OutOfTime, RowsOverflow.
    """
    steps, device = backward.compiled.steps, rows.coefficients.device
    by_step = {held.step: held for held in units}
    count, inputs = len(rows.coefficients), torch.Size(backward.compiled.input_shape).numel()
    wide = units[-1].columns.stop if units else 0
    weight = torch.zeros(count, inputs + wide, dtype=torch.float64, device=device)
    constant = torch.zeros(count, dtype=torch.float64, device=device)
    error, size = torch.zeros_like(constant), torch.zeros_like(constant)
    pending = {value: rows}
    for index in range(value - 1, -1, -1):
        carried = pending.pop(index + 1, None)
        if carried is None:
            continue
        backward.clock.check()
        step, held = steps[index], by_step.get(index)
        parts = [carried]
        if held is not None:
            columns = slice(inputs + held.columns.start, inputs + held.columns.stop)
            weight[:, columns] = carried.dense().coefficients.flatten(1)[:, held.places].double()
            parts = []
            if held.lines:
                kept = carried.coefficients * carried.pick(held.through)
                parts = [carried.with_coefficients(kept)]
        elif isinstance(step.op, Affine):
            coefficients = carried.coefficients
            shift = carried.pick_constant(step.op.bias_like(coefficients))
            bias = quick_total(coefficients * shift)
            constant, size = constant + bias, size + bias.abs()
            lost = backward.error(index)
            if lost is not None:
                found = magnitude(carried.coefficients * carried.pick(lost))
                error, size = error + rounding_error(found), size + found
            parts = [adjoint(step.op, carried)]
        else:
            parts, middle, off, found = _both_sides(backward, index, step, carried)
            constant, error, size = constant + middle, error + off, size + found
        error = error + carried.of_samples(backward.lost(step))
        for source, contribution in zip(step.sources if parts else (), parts, strict=True):
            known = pending.get(source)
            if known is not None:
                contribution = known.plus(contribution)
                found = backward.rounded(source, contribution)
                error, size = error + found, size + found
            pending[source] = contribution
    if 0 in pending:
        weight[:, :inputs] = pending[0].dense().coefficients.flatten(1).double()
    if backward.rounding.is_sound:
        error = raised(error + sum_error(LONGEST_SUM) * size)
    return CondensedRows(weight, constant, error)


def _both_sides(
    backward: BackwardPass, index: int, step: GraphStep, rows: LinearForm
) -> tuple[list[LinearForm], Tensor, Tensor, Tensor]:
    """(parts, constant, error, size) of a layer whose backward rule is linear in the rows.

    The rule bounds rows . result from below and, for the negated rows, from above; both have the
    same coefficients but for the sign, so the function lies between the two.
    """
    parts, low, size = backward.through(index, step, rows, None)
    turned, high, _ = backward.through(
        index, step, rows.with_coefficients(-rows.coefficients), None
    )
    for part, other in zip(parts, turned, strict=True):
        if not torch.equal(part.coefficients, -other.coefficients):
            if not bool(torch.isfinite(part.coefficients).all()):
                raise RowsOverflow(f"the rows of {step.kind!r} ({step.name}) overflow float64")
            raise UnsupportedLayer(f"the rows of {step.kind!r} ({step.name}) depend on signs")
    off = -0.5 * (low + high)
    return parts, 0.5 * (low - high), off.clamp_min(0.0), size
