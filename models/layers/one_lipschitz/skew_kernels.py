"""Skew kernels and the truncated exponential of the map that they are (Singla and Feizi 2021).

A kernel A with A[i, j, a, b] = -A[j, i, k - 1 - a, k - 1 - b] is, under zero padding (k - 1) / 2, a
real skew-symmetric matrix J, so that exp J is orthogonal.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

__all__ = [
    "dense_matrix",
    "exact_scale",
    "flattenings",
    "skew",
    "taylor",
    "trained_series",
]


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
    """exp J as a matrix [c h w, c h w] in float64, for images of ``size``."""
    kernel = kernel.detach().to("cpu", torch.float64)
    shape = (kernel.shape[0], *size)
    units = torch.eye(shape[0] * size[0] * size[1], dtype=torch.float64)
    padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
    images = F.conv2d(units.reshape(-1, *shape), kernel, padding=padding).flatten(1)
    # Row i is the image of unit i: the transpose of J.
    result: Tensor = torch.linalg.matrix_exp(images.T)
    return result


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
