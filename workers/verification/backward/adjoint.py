"""Rows of coefficients through the transpose of an affine map, and what rounding may cost there."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.verification.backward.linear_form import LinearForm
from workers.verification.graph.affine import Affine
from workers.verification.graph.affine_maps import Convolution, Dense, Diagonal, Pooling
from workers.verification.graph.reductions import Reduction
from workers.verification.rounding import Rounding

__all__ = ["ADJOINTS", "adjoint", "has_adjoint", "local_error"]

#: Largest matrix (in numbers) that a convolution of patches is written as.
PATCH_MATRIX = 2**20
#: Up to so many input channels oneDNN's transposed convolution takes several times too long.
FEW_CHANNELS = 16


def local_error(op: Affine, lower: Tensor, upper: Tensor, rounding: Rounding) -> Tensor:
    """d [batch, *out_shape]: how far a deployed evaluation may be from W a + b for a in the box.

    d = (g + g_own) (|W| max(|l|, |u|) + |b|), methods-lipschitz 7.5; g_own covers this verifier's
    backward step through W, a sum over the outputs that one input enters, and through the
    activation before it.
    """
    both = rounding.deployed_gamma(op.terms) + rounding.own_gamma(op.own_terms)
    both = both + rounding.own_gamma(max(op.own_terms, _fan_out(op)))
    size = op.absolute(torch.maximum(lower.abs(), upper.abs()))
    size = size + op.bound_like("bias_magnitude", size)
    return size * (both * 1.001) + rounding.underflow * op.floor


def _fan_out(op: Affine) -> int:
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


def _reduction_adjoint(op: Reduction, rows: LinearForm) -> LinearForm:
    return LinearForm(op.adjoint(rows.dense().coefficients), op.in_shape, rows.sample)


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
    return LinearForm(_framed(full, op.layer.padding, op.in_shape), op.in_shape, rows.sample)


def _conv_adjoint(op: Convolution, rows: LinearForm) -> LinearForm:
    geometry = op.geometry
    if rows.patch_grid is None:
        place = (geometry.padding[0], geometry.padding[1])
        full = _transposed(op, rows.coefficients, place, op.in_shape[1:])
        return LinearForm(full, op.in_shape, rows.sample)
    kernel = (op.weight.shape[2], op.weight.shape[3])
    size = (op.in_shape[1], op.in_shape[2])
    patch_grid = rows.patch_grid.moved(
        geometry.stride, geometry.padding[:2], geometry.dilation, kernel, size
    )
    extent = tuple(rows.coefficients.shape[1:])
    shape = (op.in_shape[0], *patch_grid.extent)
    if torch.Size(extent).numel() * torch.Size(shape).numel() <= PATCH_MATRIX:
        # A small dense matrix beats many tiny transposed convolutions.
        matrix = op.cast(f"patch {extent}", rows.coefficients, lambda: _patch_matrix(op, extent))
        full = (rows.coefficients.flatten(1) @ matrix).reshape(-1, *shape)
    else:
        full = _transposed(op, rows.coefficients, (0, 0), patch_grid.extent)
    return LinearForm(full, op.in_shape, rows.sample, patch_grid).masked().compact()


def _transposed(
    op: Convolution, coefficients: Tensor, place: tuple[int, int], size: tuple[int, ...]
) -> Tensor:
    """The window of ``size`` at ``place`` of the transposed convolution, zeros beyond it."""
    geometry = op.geometry
    plain = geometry.groups == 1 and geometry.dilation == (1, 1) and geometry.stride != (1, 1)
    if plain and coefficients.dtype == torch.float32 and op.in_shape[0] <= FEW_CHANNELS:
        if op.in_shape[0] == 1:
            return _framed(_folded(op, coefficients), place, (1, *size))
        return _transposed_by_phases(op, coefficients, place, size)
    weight = op.cast("weight", coefficients, lambda: op.weight)
    full = F.conv_transpose2d(
        coefficients, weight, None, geometry.stride, 0, 0, geometry.groups, geometry.dilation
    )
    return _framed(full, place, (op.in_shape[0], *size))


def _folded(op: Convolution, coefficients: Tensor) -> Tensor:
    """The whole transposed convolution by one matrix product, its windows summed up."""
    out, _, k_h, k_w = op.weight.shape
    stride = op.geometry.stride
    matrix = op.cast("windows", coefficients, lambda: op.weight.reshape(out, -1).T)
    height, width = coefficients.shape[2:]
    full = ((height - 1) * stride[0] + k_h, (width - 1) * stride[1] + k_w)
    return F.fold(matrix @ coefficients.flatten(2), full, (k_h, k_w), stride=stride)


def _transposed_by_phases(
    op: Convolution, coefficients: Tensor, place: tuple[int, int], size: tuple[int, ...]
) -> Tensor:
    """The same for strides above 1: output pixels of one phase (modulo the stride) are a plain
    convolution, so all phases are one with more channels, whose pixels are put in order at the end.
    """
    (s_h, s_w), (k_h, k_w) = op.geometry.stride, tuple(op.weight.shape[2:])
    b_h, b_w = -(-k_h // s_h), -(-k_w // s_w)
    out, inner = op.weight.shape[:2]

    def phases() -> Tensor:
        full = F.pad(op.weight, (0, b_w * s_w - k_w, 0, b_h * s_h - k_h))
        full = full.reshape(out, inner, b_h, s_h, b_w, s_w).flip(2, 4)
        return full.permute(1, 3, 5, 0, 2, 4).reshape(inner * s_h * s_w, out, b_h, b_w)

    kernel = op.cast("phases", coefficients, phases)
    product = F.conv2d(coefficients, kernel, None, 1, (b_h - 1, b_w - 1))
    height, width = product.shape[2:]

    def order() -> Tensor:
        """Flat places in ``product`` of the window's pixels, row by row."""
        numbers = torch.arange(inner * s_h * s_w * height * width)
        numbers = numbers.reshape(inner, s_h, s_w, height, width).permute(0, 3, 1, 4, 2)
        numbers = numbers.reshape(1, inner, height * s_h, width * s_w)
        return _framed(numbers + 1, place, (inner, *size)).flatten()

    key = f"order {tuple(coefficients.shape[1:])} {place} {tuple(size)}"
    places = op.places(key, coefficients.device, order)
    # Place 0: pixels that no window reached.
    flat = F.pad(product.flatten(1), (1, 0))
    return flat.index_select(1, places).reshape(-1, inner, *size)


def _patch_matrix(op: Convolution, extent: tuple[int, ...]) -> Tensor:
    numbers = torch.Size(extent).numel()
    units = torch.eye(numbers, dtype=torch.float64).reshape(numbers, *extent)
    (s_h, s_w), (d_h, d_w) = op.geometry.stride, op.geometry.dilation
    k_h, k_w = op.weight.shape[2:]
    size = (
        (extent[1] - 1) * s_h + d_h * (k_h - 1) + 1,
        (extent[2] - 1) * s_w + d_w * (k_w - 1) + 1,
    )
    return _transposed(op, units, (0, 0), size).flatten(1)


def _framed(full: Tensor, padding: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """The map inside its zero padding, filled up with zeros where no window reached."""
    top, left = padding[0], padding[1]
    missing_h = max(0, top + shape[1] - full.shape[2])
    missing_w = max(0, left + shape[2] - full.shape[3])
    full = F.pad(full, (0, missing_w, 0, missing_h))
    return full[:, :, top : top + shape[1], left : left + shape[2]].contiguous()


#: One row per kind of affine map in each table.
ADJOINTS: dict[type[Affine], Callable[..., LinearForm]] = {
    Diagonal: _diagonal_adjoint,
    Reduction: _reduction_adjoint,
    Dense: _dense_adjoint,
    Convolution: _conv_adjoint,
    Pooling: _pooling_adjoint,
}
FAN_OUT: dict[type[Affine], Callable[..., int]] = {
    Diagonal: lambda op: 1,
    Reduction: lambda op: 1,
    Dense: lambda op: op.weight.shape[0],
    Convolution: _conv_fan_out,
    Pooling: lambda op: op.layer.kernel[0] * op.layer.kernel[1],
}
