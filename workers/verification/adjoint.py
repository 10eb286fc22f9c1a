"""Rows of coefficients through the transpose of an affine map, and what rounding may cost there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.verification.affine import Affine, Convolution, Dense, Diagonal, Pooling
from workers.verification.reductions import Reduction
from workers.verification.rounding import Rounding
from workers.verification.rows import Rows

__all__ = ["adjoint", "local_error"]

#: Largest matrix (in numbers) that a convolution of patches is written as.
PATCH_MATRIX = 2**20


def local_error(op: Affine, lower: Tensor, upper: Tensor, rounding: Rounding) -> Tensor:
    """d [batch, *out_shape]: how far a deployed evaluation may be from W a + b for a in the box.

    d = (g + g_own) (|W| max(|l|, |u|) + |b|), methods-lipschitz 7.5; g_own covers this verifier's
    backward step through W, a sum over the outputs that one input enters, and through the
    activation before it.
    """
    both = rounding.deployed_gamma(op.terms) + rounding.own_gamma(op.terms)
    both = both + rounding.own_gamma(max(op.terms, _fan_out(op)))
    size = op.absolute(torch.maximum(lower.abs(), upper.abs()))
    size = size + op.bound_like("bias_magnitude", size)
    return size * (both * 1.001) + rounding.underflow * (op.terms + 1.0)


def _fan_out(op: Affine) -> int:
    """At most how many outputs one input enters: the terms of one coefficient of W^T y."""
    if isinstance(op, Dense):
        return op.weight.shape[0]
    if isinstance(op, Convolution):
        return op.weight.shape[0] // op.geometry.groups * op.weight[0, 0].numel()
    return op.layer.kernel[0] * op.layer.kernel[1] if isinstance(op, Pooling) else 1


def adjoint(op: Affine, rows: Rows) -> Rows:
    """rows . (W x) as rows on x."""
    if isinstance(op, Diagonal):
        scale = op.cast("scale", rows.coefficients, lambda: op.scale)
        return rows.with_coefficients(rows.coefficients * rows.pick_constant(scale))
    if isinstance(op, Reduction):
        return Rows(op.adjoint(rows.dense().coefficients), op.in_shape, rows.sample)
    if isinstance(op, Dense):
        flat = rows.dense().coefficients.flatten(1)
        weight = op.cast("weight", flat, lambda: op.weight)
        return Rows((flat @ weight).reshape(-1, *op.in_shape), op.in_shape, rows.sample)
    if isinstance(op, Convolution):
        return _conv_adjoint(op, rows)
    assert isinstance(op, Pooling)
    rows = rows.dense()
    scaled = rows.coefficients * op.cast("inverse", rows.coefficients, op._inverse)
    channels = op.in_shape[0]
    ones = scaled.new_ones(channels, 1, *op.layer.kernel)
    full = F.conv_transpose2d(
        scaled, ones, None, op.layer.stride, 0, 0, channels, op.layer.dilation
    )
    return Rows(_framed(full, op.layer.padding, op.in_shape), op.in_shape, rows.sample)


def _conv_adjoint(op: Convolution, rows: Rows) -> Rows:
    geometry = op.geometry
    if rows.frame is None:
        full = _transposed(op, rows.coefficients)
        return Rows(_framed(full, geometry.padding, op.in_shape), op.in_shape, rows.sample)
    kernel = (op.weight.shape[2], op.weight.shape[3])
    size = (op.in_shape[1], op.in_shape[2])
    frame = rows.frame.moved(geometry.stride, geometry.padding[:2], geometry.dilation, kernel, size)
    extent = tuple(rows.coefficients.shape[1:])
    shape = (op.in_shape[0], *frame.extent)
    if torch.Size(extent).numel() * torch.Size(shape).numel() <= PATCH_MATRIX:
        # A small dense matrix beats many tiny transposed convolutions.
        matrix = op.cast(f"patch {extent}", rows.coefficients, lambda: _patch_matrix(op, extent))
        full = (rows.coefficients.flatten(1) @ matrix).reshape(-1, *shape)
    else:
        full = _transposed(op, rows.coefficients)
    return Rows(full, op.in_shape, rows.sample, frame).masked().compact()


def _transposed(op: Convolution, coefficients: Tensor) -> Tensor:
    geometry = op.geometry
    plain = geometry.groups == 1 and geometry.dilation == (1, 1)
    if plain and op.in_shape[0] <= 4 and coefficients.dtype == torch.float32:
        # oneDNN's transposed convolution is slow on few input channels.
        return _transposed_by_blocks(op, coefficients)
    weight = op.cast("weight", coefficients, lambda: op.weight)
    return F.conv_transpose2d(
        coefficients, weight, None, geometry.stride, 0, 0, geometry.groups, geometry.dilation
    )


def _transposed_by_blocks(op: Convolution, coefficients: Tensor) -> Tensor:
    """The transposed convolution as one matrix product and shifted sums of stride-sized blocks."""
    (s_h, s_w), (k_h, k_w) = op.geometry.stride, tuple(op.weight.shape[2:])
    b_h, b_w = -(-k_h // s_h), -(-k_w // s_w)
    out, inner = op.weight.shape[:2]

    def blocks() -> Tensor:
        full = F.pad(op.weight, (0, b_w * s_w - k_w, 0, b_h * s_h - k_h))
        full = full.reshape(out, inner, b_h, s_h, b_w, s_w)
        return full.permute(0, 2, 4, 1, 3, 5).reshape(out, -1)

    matrix = op.cast("blocks", coefficients, blocks)
    count, _, height, width = coefficients.shape
    product = coefficients.permute(0, 2, 3, 1).reshape(-1, out) @ matrix
    product = product.reshape(count, height, width, b_h, b_w, inner, s_h, s_w)
    full = product.new_zeros(count, inner, height + b_h - 1, s_h, width + b_w - 1, s_w)
    for i in range(b_h):
        for j in range(b_w):
            part = product[:, :, :, i, j].permute(0, 3, 1, 4, 2, 5)
            full[:, :, i : i + height, :, j : j + width, :] += part
    full = full.reshape(count, inner, (height + b_h - 1) * s_h, (width + b_w - 1) * s_w)
    return full[:, :, : (height - 1) * s_h + k_h, : (width - 1) * s_w + k_w]


def _patch_matrix(op: Convolution, extent: tuple[int, ...]) -> Tensor:
    numbers = torch.Size(extent).numel()
    units = torch.eye(numbers, dtype=torch.float64).reshape(numbers, *extent)
    return _transposed(op, units).flatten(1)


def _framed(full: Tensor, padding: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """The map inside its zero padding, filled up with zeros where no window reached."""
    top, left = padding[0], padding[1]
    missing_h = max(0, top + shape[1] - full.shape[2])
    missing_w = max(0, left + shape[2] - full.shape[3])
    full = F.pad(full, (0, missing_w, 0, missing_h))
    return full[:, :, top : top + shape[1], left : left + shape[2]].contiguous()
