"""Rows of coefficients through the transpose of an affine map, and what rounding may cost there."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.verification.backward.linear_form import LinearForm
from workers.verification.backward.transposed_convolution import (
    framed,
    transposed,
    transposed_patches,
)
from workers.verification.graph.affine import Affine
from workers.verification.graph.affine_maps import Convolution, Dense, Diagonal, Pooling
from workers.verification.graph.reductions import Centering, Reduction
from workers.verification.graph.skew.series import SkewSeries
from workers.verification.graph.turned_pairs import PairTurn
from workers.verification.numerics import rounding_error
from workers.verification.rounding import Rounding

__all__ = ["ADJOINTS", "adjoint", "fan_out", "has_adjoint", "local_error"]


def local_error(op: Affine, lower: Tensor, upper: Tensor, rounding: Rounding) -> Tensor:
    """d [batch, *out_shape]: how far a deployed evaluation may be from W a + b for a in the box.

    d = (g + g_own) (|W| max(|l|, |u|) + |b|) with the gamma_n of Higham 2002, section 3.1. g_own
    covers this verifier's backward step through W, a sum over the outputs that one input enters,
    and through the activation before it (docs/soundness.md, "Backward bounds").
    """
    both = rounding.deployed_gamma(op.terms) + rounding.own_gamma(op.own_terms)
    both = both + rounding.own_gamma(max(op.own_terms, fan_out(op)))
    size = op.absolute(torch.maximum(lower.abs(), upper.abs()))
    size = size + op.bound_like("bias_magnitude", size)
    return rounding_error(size, both, terms=op.terms) + rounding.underflow * op.floor


def fan_out(op: Affine) -> int:
    """At most how many outputs one input enters: the terms of one coefficient of W^T y."""
    return FAN_OUT[type(op)](op)


def _conv_fan_out(op: Convolution) -> int:
    return op.weight.shape[0] // op.geometry.groups * op.weight[0, 0].numel()


def adjoint(op: Affine, rows: LinearForm) -> LinearForm:
    """rows . (W x) as rows on x."""
    return ADJOINTS[type(op)](op, rows)


def has_adjoint(op: Affine) -> bool:
    """Whether rows can be carried back through the map."""
    return type(op) in ADJOINTS and type(op) in FAN_OUT


def _diagonal_adjoint(op: Diagonal, rows: LinearForm) -> LinearForm:
    scale = op.cast("scale", rows.coefficients, lambda: op.scale)
    return rows.with_coefficients(rows.coefficients * rows.pick_constant(scale))


def _reduction_adjoint(op: Reduction | Centering | SkewSeries, rows: LinearForm) -> LinearForm:
    return LinearForm(op.adjoint(rows.dense().coefficients), op.in_shape, rows.sample)


def _turn_adjoint(op: PairTurn, rows: LinearForm) -> LinearForm:
    """Along the channels, which patches have too."""
    return rows.with_coefficients(op.adjoint(rows.coefficients))


def _dense_adjoint(op: Dense, rows: LinearForm) -> LinearForm:
    flat = rows.dense().coefficients.flatten(1)
    weight = op.cast("weight", flat, lambda: op.weight)
    return LinearForm((flat @ weight).reshape(-1, *op.in_shape), op.in_shape, rows.sample)


def _pooling_adjoint(op: Pooling, rows: LinearForm) -> LinearForm:
    rows = rows.dense()
    scaled = rows.coefficients * op.cast("inverse", rows.coefficients, op._inverse)
    channels = op.in_shape[0]
    ones = scaled.new_ones(channels, 1, *op.layer.kernel)
    full = F.conv_transpose2d(
        scaled, ones, None, op.layer.stride, 0, 0, channels, op.layer.dilation
    )
    return LinearForm(framed(full, op.layer.padding, op.in_shape), op.in_shape, rows.sample)


def _conv_adjoint(op: Convolution, rows: LinearForm) -> LinearForm:
    geometry = op.geometry
    if rows.patch_grid is None:
        place = (geometry.padding[0], geometry.padding[1])
        full = transposed(op, rows.coefficients, place, op.in_shape[1:])
        return LinearForm(full, op.in_shape, rows.sample)
    kernel = (op.weight.shape[2], op.weight.shape[3])
    size = (op.in_shape[1], op.in_shape[2])
    patch_grid = rows.patch_grid.moved(
        geometry.stride, geometry.padding[:2], geometry.dilation, kernel, size
    )
    full = transposed_patches(op, rows.coefficients, patch_grid.extent)
    return LinearForm(full, op.in_shape, rows.sample, patch_grid).compact()


#: One row per kind of affine map in each table.
ADJOINTS: dict[type[Affine], Callable[..., LinearForm]] = {
    Diagonal: _diagonal_adjoint,
    Reduction: _reduction_adjoint,
    Centering: _reduction_adjoint,
    SkewSeries: _reduction_adjoint,
    PairTurn: _turn_adjoint,
    Dense: _dense_adjoint,
    Convolution: _conv_adjoint,
    Pooling: _pooling_adjoint,
}
FAN_OUT: dict[type[Affine], Callable[..., int]] = {
    Diagonal: lambda op: 1,
    Reduction: lambda op: 1,
    Centering: lambda op: op.count,
    SkewSeries: lambda op: int(min(op.terms, 2.0**62)),
    PairTurn: lambda op: 2,
    Dense: lambda op: op.weight.shape[0],
    Convolution: _conv_fan_out,
    Pooling: lambda op: op.layer.kernel[0] * op.layer.kernel[1],
}
