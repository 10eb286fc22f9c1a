"""Skew kernels and the truncated exponential of the map that they are (Singla and Feizi 2021).

A kernel A with A[i, j, a, b] = -A[j, i, k - 1 - a, k - 1 - b] is, under zero padding (k - 1) / 2, a
real skew-symmetric matrix J, so that exp J is orthogonal.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

__all__ = [
    "dense_matrix",
    "exact_scale",
    "flattenings",
    "over_norm",
    "power_step",
    "skew",
    "taylor",
    "trained_series",
]

#: A norm counts as this at least.
TINY = 1e-12
#: Sides from which on an exponential takes six products, not the library's dozen.
LARGE = 1024


def skew(weight: Tensor) -> Tensor:
    """(M - M^T) / 2 for a kernel [c, c, k, k]; exactly its own negative transpose in float32 too,
    because (a - b) / 2 and (b - a) / 2 are exact negatives."""
    return (weight - weight.transpose(0, 1).flip(2, 3)) / 2


def flattenings(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices [c k, c k] and [c, c k k] of a kernel [c, c, k, k].

    |J| <= k times the lesser of their norms (Singla and Feizi 2021, theorem 1); of a skew kernel
    the other two flattenings have the same norms.
    """
    channels, _, height, width = kernel.shape
    tall = kernel.permute(0, 2, 1, 3).reshape(channels * height, channels * width)
    return tall, kernel.reshape(channels, channels * height * width)


class PowerStep(NamedTuple):
    """Singular vectors of a matrix as they are known, both of norm 1, and left^T M right >= 0."""

    left: Tensor
    right: Tensor
    norm: Tensor


def power_step(matrix: Tensor, vector: Tensor) -> PowerStep:
    """One power step for ``vector``, the left singular vector, in place."""
    right = F.normalize(matrix.T @ vector, dim=0)
    image = matrix @ right
    norm = torch.linalg.vector_norm(image)
    vector.copy_(image / norm.clamp_min(TINY))
    return PowerStep(vector.clone(), right, norm)


class _OverNorm(torch.autograd.Function):
    """``kernel``, K = (W - W^T) / 2 of the weight W, over the lesser of two norms left^T M right of
    its flattenings M, with the gradient of both. No branch on a number: a GPU need not wait."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, kernel: Tensor, *steps: Tensor) -> Tensor:
        tall_left, tall_right, tall_norm, flat_left, flat_right, flat_norm = steps
        norm = torch.minimum(tall_norm, flat_norm).clamp_min(TINY)
        result = kernel / norm
        of_tall = (tall_norm < flat_norm).to(norm.dtype)
        vectors = (tall_left, tall_right * of_tall, flat_left, flat_right * (1 - of_tall))
        ctx.save_for_backward(result, norm, *vectors)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        result, norm, tall_left, tall_right, flat_left, flat_right = ctx.saved_tensors
        channels, _, height, width = result.shape
        share = torch.dot(gradient.flatten(), result.flatten())
        moved = gradient - torch.outer(flat_left, flat_right * share).reshape(result.shape)
        tall = torch.outer(tall_left, tall_right * share)
        moved -= tall.reshape(channels, height, channels, width).permute(0, 2, 1, 3)
        return skew(moved.div_(norm)), *([None] * 7)


def over_norm(weight: Tensor, kernel: Tensor, tall: PowerStep, flat: PowerStep) -> Tensor:
    """``kernel``, which is ``skew(weight)``, over the lesser of two norms: with a gradient."""
    result: Tensor = _OverNorm.apply(weight, kernel, *tall, *flat)
    return result


def exact_scale(kernel: Tensor) -> float:
    """1 over the lesser norm of ``flattenings``, in float64; 0 for a kernel of zeros.

    Eigenvalues of the Gram matrix: a fraction of the time of singular values.
    """
    tall, flat = (matrix.to(torch.float64) for matrix in flattenings(kernel))
    # A kernel of one place is one matrix.
    matrices = (tall,) if tall.shape == flat.shape else (tall, flat)
    squares = [float(torch.linalg.eigvalsh(matrix @ matrix.T)[-1]) for matrix in matrices]
    least = min(squares)
    return least**-0.5 if least > 0.0 else 0.0


def taylor(x: Tensor, kernel: Tensor, degree: int) -> Tensor:
    """sum_j J^j x / j!, j = 0 ... degree: ``degree`` convolutions (Horner's scheme)."""
    padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
    z = x
    for divisor in range(degree, 0, -1):
        z = torch.add(x, F.conv2d(z, kernel, padding=padding), alpha=1.0 / divisor)
    return z


def dense_matrix(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """exp J as a matrix [c h w, c h w] in float64, for images of ``size``; |J| at most 3.3."""
    kernel = kernel.detach().to("cpu", torch.float64)
    channels, _, height, width = kernel.shape
    places = torch.arange(size[0] * size[1]).reshape(size)
    # Blocks [place of the result, place of the image], one tap in each.
    blocks = kernel.new_zeros(places.numel(), places.numel(), channels, channels)
    for row, column in itertools.product(range(height), range(width)):
        down, right = row - height // 2, column - width // 2
        results = _shifted(places, -down, -right)
        blocks[results, _shifted(places, down, right)] = kernel[:, :, row, column]
    matrix = blocks.permute(2, 0, 3, 1).reshape(channels * places.numel(), -1)
    if len(matrix) > LARGE:
        return _exponential(matrix)
    result: Tensor = torch.linalg.matrix_exp(matrix)
    return result


def _shifted(places: Tensor, down: int, right: int) -> Tensor:
    """The places that such a shift does not push over the first edges, flat: from ``down`` on, or
    all but the last ``-down``."""
    height, width = places.shape
    rows = places[max(down, 0) : max(height + min(down, 0), 0)]
    return rows[:, max(right, 0) : max(width + min(right, 0), 0)].flatten()


def _exponential(matrix: Tensor) -> Tensor:
    """exp J within 1e-7 for |J| <= 3.3, in six products: the square of exp(J / 2), whose series of
    degree 12 is four polynomials of degree 3 (Paterson and Stockmeyer 1973)."""
    half = matrix / 2
    square = half @ half
    cube = square @ half
    result = torch.zeros_like(half)
    for first in (9, 6, 3, 0):
        # Of the degree 12 the innermost polynomial has one coefficient more.
        result = cube / math.factorial(12) if first == 9 else result @ cube
        result.add_(square, alpha=1 / math.factorial(first + 2))
        result.add_(half, alpha=1 / math.factorial(first + 1))
        result.diagonal().add_(1 / math.factorial(first))
    return result @ result


class _Series(torch.autograd.Function):
    """The truncated exponential with one saved tensor and one weight gradient.

    Value and input gradient are exact. The weight gradient pairs the series phi(J) x of the input
    with that of the output's gradient, phi(t) = (e^t - 1) / t: of its terms J^p ... J^q it has the
    factor 1 / ((p + 1)! (q + 1)!) in the place of 1 / (p + q + 1)! (Singla and Feizi 2022).
    Inside an autocast all convolutions, backward too, multiply in its dtype; sums stay as they are.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, degree: int) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        kernel = kernel.to(dtype)
        z = x
        for divisor in range(degree, 1, -1):
            z = torch.add(x, _image(z, kernel), alpha=1.0 / divisor)
        ctx.save_for_backward(z.to(dtype), kernel)
        ctx.degree = degree
        return x + _image(z, kernel)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor, None]:
        (gradient,) = gradients
        z, kernel = ctx.saved_tensors
        padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
        g = gradient
        for divisor in range(ctx.degree, 1, -1):
            # The transpose of J is -J.
            g = torch.add(gradient, _image(g, kernel), alpha=-1.0 / divisor)
        weight = conv2d_weight(z, kernel.shape, g.to(kernel.dtype), padding=padding)
        # The network's input asks for no gradient.
        wanted = gradient - _image(g, kernel) if ctx.needs_input_grad[0] else None
        return wanted, weight.to(gradient.dtype), None


def _image(z: Tensor, kernel: Tensor) -> Tensor:
    """J z in the dtype of z, multiplied in the kernel's."""
    padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
    return F.conv2d(z.to(kernel.dtype), kernel, padding=padding).to(z.dtype)


def trained_series(x: Tensor, kernel: Tensor, degree: int) -> Tensor:
    """``taylor`` with the fast backward pass; kernel [c, c, k, k] must be skew."""
    result: Tensor = _Series.apply(x, kernel, degree)
    return result
