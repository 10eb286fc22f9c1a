"""Transposed convolutions of coefficients, in the form that a CPU computes fastest.

For backward passes (``adjoint``). All forms give the same numbers up to rounding, which
``adjoint.local_error`` covers in any order of summation; which one is taken is a matter of speed:

* oneDNN's transposed convolution with a stride computes few channels slowly. There it is replaced
  by one plain convolution that has all phases of the stride as channels, or, for one channel, by a
  matrix product whose windows are summed up. Float32 alone: float64 does not go through oneDNN.
* On small patches one matrix product beats many tiny convolutions.

``benchmarks/verification/layouts.py`` measures what each brings. On a shared two-core x86 machine,
one thread, in speeds of torch's own kernel: phases 1.9 to 2.1, the matrix product for one channel
2.6, patches as one product 3.4 to 6.7.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.verification.graph.affine_maps import Convolution

__all__ = ["direct", "framed", "transposed", "transposed_patches"]

#: Largest matrix (in numbers) that a convolution of patches is written as.
PATCH_MATRIX = 2**20
#: Up to so many input channels oneDNN's strided transposed convolution is not used.
FEW_CHANNELS = 16


def transposed(
    op: Convolution, coefficients: Tensor, place: tuple[int, int], size: tuple[int, ...]
) -> Tensor:
    """W^T y: coefficients [rows, *out_shape] -> [rows, channels, *size].

    The window of ``size`` at ``place`` of the full transposed convolution, zeros beyond it.
    """
    geometry = op.geometry
    plain = geometry.groups == 1 and geometry.dilation == (1, 1) and geometry.stride != (1, 1)
    if plain and coefficients.dtype == torch.float32 and op.in_shape[0] <= FEW_CHANNELS:
        if op.in_shape[0] == 1:
            return framed(_folded(op, coefficients), place, (1, *size))
        return _by_phases(op, coefficients, place, size)
    return framed(direct(op, coefficients), place, (op.in_shape[0], *size))


def transposed_patches(op: Convolution, coefficients: Tensor, extent: tuple[int, ...]) -> Tensor:
    """The same for patches [rows, out_channels, h, w]: all of [rows, channels, *extent]."""
    given = tuple(coefficients.shape[1:])
    shape = (op.in_shape[0], *extent)
    if torch.Size(given).numel() * torch.Size(shape).numel() > PATCH_MATRIX:
        return transposed(op, coefficients, (0, 0), extent)
    matrix = op.cast(f"patch {given}", coefficients, lambda: _patch_matrix(op, given))
    return (coefficients.flatten(1) @ matrix).reshape(-1, *shape)


def framed(full: Tensor, padding: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """The map inside its zero padding, filled up with zeros where no window reached."""
    top, left = padding[0], padding[1]
    missing_h = max(0, top + shape[1] - full.shape[2])
    missing_w = max(0, left + shape[2] - full.shape[3])
    if missing_h or missing_w:
        full = F.pad(full, (0, missing_w, 0, missing_h))
    return full[:, :, top : top + shape[1], left : left + shape[2]].contiguous()


def direct(op: Convolution, coefficients: Tensor) -> Tensor:
    """The whole transposed convolution by the library's own kernel."""
    geometry, weight = op.geometry, op.cast("weight", coefficients, lambda: op.weight)
    return F.conv_transpose2d(
        coefficients, weight, None, geometry.stride, 0, 0, geometry.groups, geometry.dilation
    )


def _folded(op: Convolution, coefficients: Tensor) -> Tensor:
    """The same by one matrix product, its windows summed up."""
    out, _, k_h, k_w = op.weight.shape
    stride = op.geometry.stride
    matrix = op.cast("windows", coefficients, lambda: op.weight.reshape(out, -1).T)
    height, width = coefficients.shape[2:]
    full = ((height - 1) * stride[0] + k_h, (width - 1) * stride[1] + k_w)
    return F.fold(matrix @ coefficients.flatten(2), full, (k_h, k_w), stride=stride)


def _by_phases(
    op: Convolution, coefficients: Tensor, place: tuple[int, int], size: tuple[int, ...]
) -> Tensor:
    """The window of ``size`` at ``place`` by one plain convolution.

    Output pixels of one phase (modulo the stride) are a plain convolution, so all phases are one
    with more channels, whose pixels are put in order at the end.
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
    covered = place[0] + size[0] <= height * s_h and place[1] + size[1] <= width * s_w
    # Place 0 of the rest: pixels that no window reached.
    first = 0 if covered else 1

    def order() -> Tensor:
        """Flat places in ``flat`` of the window's pixels, row by row."""
        numbers = torch.arange(first, first + inner * s_h * s_w * height * width)
        numbers = numbers.reshape(inner, s_h, s_w, height, width).permute(0, 3, 1, 4, 2)
        numbers = numbers.reshape(1, inner, height * s_h, width * s_w)
        return framed(numbers, place, (inner, *size)).flatten()

    key = f"order {first} {tuple(coefficients.shape[1:])} {place} {tuple(size)}"
    places = op.places(key, coefficients.device, order)
    flat = product.flatten(1) if covered else F.pad(product.flatten(1), (1, 0))
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
    return transposed(op, units, (0, 0), size).flatten(1)
