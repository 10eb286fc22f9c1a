"""Sound upper bounds on operator norms (largest singular values), once per model, in float64.

Power iteration is not used: it bounds from below. Dense and small operators are materialised;
convolutions are bounded by the norm of twisted circulant extensions (``circulant``) and, for
kernels of one sign, by a Collatz-Wielandt bound. Every bound is valid by itself; the least counts
(docs/soundness.md, "Operator norms").
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.norms.backward_errors import cholesky_error
from workers.verification.norms.circulant import (
    CLOSE,
    circulant_norm,
    everywhere_norm,
    polyphase,
    root,
)
from workers.verification.norms.dense import DENSE_SIDE, dense_norm
from workers.verification.numerics import nonzero, raised

__all__ = ["ConvGeometry", "absolute_norm", "conv_norm", "power_iteration_norm"]

#: Operators whose smaller side is at most this are materialised and their norm is exact.
EXACT_SIDE = 2048
#: Operators up to this side are materialised at once, however many groups there are.
SMALL_SIDE = 256
#: Kernels wider than this share of the grid lose percents in circulant bounds; there operators
#: whose smaller side is at most ``CHOLESKY_SIDE`` get a bound proved by a Cholesky factorisation.
WIDE, CHOLESKY_SIDE = 0.12, 8192
#: Collatz-Wielandt: power steps at most, which end when a step gains less than ``GAIN``; entries of
#: the vector are kept away from zero, because unread inputs would otherwise divide 0 by 0.
STEPS, GAIN, MIN_ENTRY = 24, 1e-4, 1e-30
#: Operations in two maps of at most 2^31 terms each, and a few.
TWO_MAPS = 2**32 + 2**28
#: What a Cholesky factorisation proves lies this share above the estimate of |A|^2.
ABOVE_ESTIMATE = 1e-6


@dataclass(frozen=True)
class ConvGeometry:
    """Stride, zero padding (top, left, bottom, right), dilation and groups on an input [h, w]."""

    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution: x [batch, c, h, w] -> [batch, c', h', w']."""
        top, left, bottom, right = self.padding
        if (top, left) == (bottom, right):
            padding = (top, left)
        else:
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def output_size(self, kernel: tuple[int, int]) -> tuple[int, int]:
        """(h', w') for a kernel (h, w)."""
        pads = (self.padding[0] + self.padding[2], self.padding[1] + self.padding[3])
        first, second = (
            (size + pad - d * (k - 1) - 1) // s + 1
            for size, pad, k, s, d in zip(
                self.size, pads, kernel, self.stride, self.dilation, strict=True
            )
        )
        return (first, second)


def materialize(
    apply: Callable[[Tensor], Tensor], shape: tuple[int, ...], clock: Clock = UNLIMITED
) -> Tensor:
    """The matrix [n, m] (transposed: row i is the image of unit vector i) of a linear map."""
    size = math.prod(shape)
    rows = []
    for start in range(0, size, 256):
        clock.check()
        stop = min(start + 256, size)
        units = torch.zeros(stop - start, size, dtype=torch.float64)
        units[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
        rows.append(apply(units.reshape(-1, *shape)).reshape(stop - start, -1))
    return torch.cat(rows)


def _adjoint(apply: Callable[[Tensor], Tensor], like: Tensor) -> Callable[[Tensor], Tensor]:
    """The exact adjoint of a linear map, by reverse-mode differentiation."""

    def transposed(y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = torch.zeros_like(like, requires_grad=True)
            (gradient,) = torch.autograd.grad(apply(x), x, y)
        return gradient

    return transposed


def absolute_norm(
    apply: Callable[[Tensor], Tensor], shape: tuple[int, ...], clock: Clock = UNLIMITED
) -> float:
    """Upper bound on the norm of a linear map with entries >= 0, by Collatz-Wielandt.

    For every vector v > 0: |A|^2 <= max_i (A^T A v)_i / v_i. A few power steps choose v; any v is
    valid, so nothing depends on convergence.
    """
    v = torch.ones(1, *shape, dtype=torch.float64)
    adjoint = _adjoint(apply, v)
    best = math.inf
    for _ in range(STEPS):
        clock.check()
        image = adjoint(apply(v))
        ratio = float((image / v).max())
        if math.isnan(ratio) or ratio >= best * (1.0 - GAIN):
            best = min(best, ratio) if not math.isnan(ratio) else best
            break
        best = ratio
        largest = float(image.max())
        if not 0.0 < largest < math.inf:
            break
        v = (image / largest).clamp_min(MIN_ENTRY)
    return root(raised(best, TWO_MAPS)) if math.isfinite(best) else math.inf


def conv_norm(weight: Tensor, geometry: ConvGeometry, clock: Clock = UNLIMITED) -> float:
    """Upper bound on the operator norm of a zero-padded convolution.

    weight [out, in / groups, h, w]. Exact (to 1e-8) where the smaller side of a group's operator is
    at most ``EXACT_SIDE``; else a bound at every frequency at once where that is within ``CLOSE``,
    else the least of the twisted circulant bounds and Collatz-Wielandt.
    Dilation without stride splits into independent phases; groups are independent.
    """
    weight = weight.detach().to(torch.float64).cpu()
    scale = float(weight.abs().max()) if weight.numel() else 0.0
    if not math.isfinite(scale):
        return math.inf
    if scale == 0.0:
        return 0.0
    scale = 2.0 ** math.frexp(scale)[1]
    weight = weight / scale
    per_group = weight.reshape(geometry.groups, -1, *weight.shape[1:])
    unique = torch.unique(per_group, dim=0) if geometry.groups > 1 else per_group
    bound = 0.0
    for kernel in unique:
        for single in _phases(kernel, geometry):
            bound = max(bound, _single_norm(kernel, single, clock, floor=bound))
    return scale * bound


def _phases(kernel: Tensor, geometry: ConvGeometry) -> list[ConvGeometry]:
    """One-group geometries whose largest norm is the convolution's (distinct ones only)."""
    one_group = ConvGeometry(geometry.size, geometry.stride, geometry.padding, geometry.dilation, 1)
    if geometry.dilation == (1, 1) or geometry.stride != (1, 1):
        return [one_group]
    # Output i reads inputs i + d q - pad: outputs and inputs of one residue modulo d only.
    axes: list[set[tuple[int, int, int]]] = []
    for axis in range(2):
        size, d = geometry.size[axis], geometry.dilation[axis]
        before = geometry.padding[axis]
        out = geometry.output_size((kernel.shape[2], kernel.shape[3]))[axis]
        reach = kernel.shape[2 + axis] - 1
        found = set()
        for phase in range(min(d, out)):
            outputs = (out - phase - 1) // d + 1
            # Padded positions phase, phase + d, ...: the inputs among them are contiguous.
            first = -(-(before - phase) // d) if phase < before else 0
            positions = outputs + reach
            last = (before + size - 1 - phase) // d
            inside = max(0, min(last, positions - 1) - first + 1)
            if inside > 0:
                found.add((inside, first, positions - first - inside))
        axes.append(found)
    return [
        ConvGeometry((h[0], w[0]), (1, 1), (h[1], w[1], h[2], w[2]), (1, 1), 1)
        for h, w in itertools.product(*axes)
    ]


def _single_norm(kernel: Tensor, geometry: ConvGeometry, clock: Clock, *, floor: float) -> float:
    out_channels, in_channels, kernel_h, kernel_w = kernel.shape
    height, width = geometry.output_size((kernel_h, kernel_w))
    shape = (in_channels, *geometry.size)
    inputs, outputs = math.prod(shape), out_channels * height * width
    pointwise = (kernel_h, kernel_w) == geometry.stride == (1, 1) and not any(geometry.padding)
    if pointwise and min(in_channels, out_channels) <= DENSE_SIDE:
        # One matrix at every place.
        return dense_norm(kernel.flatten(1), clock)
    blocks = polyphase(kernel, geometry.stride, geometry.dilation)
    grid = (height + blocks.shape[2] - 1, width + blocks.shape[3] - 1)
    if min(inputs, outputs) <= EXACT_SIDE:
        # Of many groups most are ruled out without their matrix.
        if floor > 0.0 and min(inputs, outputs) > SMALL_SIDE:
            bound = circulant_norm(blocks, grid, floor=floor, clock=clock)
            if bound <= floor:
                return bound
        return _exact_norm(kernel, geometry, (out_channels, height, width), clock)
    least = _longest(kernel, geometry, shape)
    bound = everywhere_norm(blocks, least, clock)
    if bound < math.inf:
        return bound
    bound = absolute_norm(lambda x: geometry.apply(x, kernel.abs()), shape, clock)
    if bound <= floor:
        return bound
    bound = circulant_norm(blocks, grid, ceiling=bound, floor=floor, clock=clock)
    if bound <= max(floor, least * (1.0 + CLOSE)):
        return bound
    wide = any((t - 1) / n > WIDE for t, n in zip(blocks.shape[2:], grid, strict=True))
    if wide and 8 <= min(inputs, outputs) <= CHOLESKY_SIDE:
        bound = min(bound, _cholesky_norm(kernel, geometry, (out_channels, height, width), clock))
    return bound


def _longest(kernel: Tensor, geometry: ConvGeometry, shape: tuple[int, ...]) -> float:
    """About the longest row or column of the operator: its norm is no less, as far as float64
    knows. It decides what is tried, not what is proved."""
    ones, squares = torch.ones(1, *shape, dtype=torch.float64), kernel.square()

    def apply(x: Tensor) -> Tensor:
        return geometry.apply(x, squares)

    rows = apply(ones)
    columns = _adjoint(apply, ones)(torch.ones_like(rows))
    return math.sqrt(max(float(rows.max()), float(columns.max())))


def _exact_norm(
    kernel: Tensor, geometry: ConvGeometry, out_shape: tuple[int, ...], clock: Clock
) -> float:
    in_shape = (kernel.shape[1], *geometry.size)

    def apply(x: Tensor) -> Tensor:
        return geometry.apply(x, kernel)

    if math.prod(in_shape) <= math.prod(out_shape):
        return dense_norm(materialize(apply, in_shape, clock), clock)
    adjoint = _adjoint_batched(apply, in_shape)
    return dense_norm(materialize(adjoint, out_shape, clock), clock)


def _cholesky_norm(
    kernel: Tensor, geometry: ConvGeometry, out_shape: tuple[int, ...], clock: Clock
) -> float:
    """Upper bound within 1e-6 of the norm, proved by a Cholesky factorisation, or infinity.

    A Lanczos value (a lower estimate, used as a guess only) is raised a little to s; if the
    factorisation of s I - A^T A runs to completion, all its eigenvalues are positive up to its
    backward error (``cholesky_error``), which is added to s.
    """
    in_shape = (kernel.shape[1], *geometry.size)

    def apply(x: Tensor) -> Tensor:
        return geometry.apply(x, kernel)

    adjoint = _adjoint_batched(apply, in_shape)
    shape: tuple[int, ...]
    square: Callable[[Tensor], Tensor]
    if math.prod(in_shape) <= math.prod(out_shape):
        shape, square = in_shape, lambda x: adjoint(apply(x))
    else:
        shape, square = out_shape, lambda y: apply(adjoint(y))
    size = math.prod(shape)

    def product(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        clock.check()
        x = torch.from_numpy(np.ascontiguousarray(vector)).reshape(1, *shape)
        image: NDArray[np.float64] = square(x).numpy().ravel()
        return image

    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(size)
    try:
        guess = float(eigsh(operator, k=1, tol=1e-9, v0=start, return_eigenvectors=False)[0])
    except ArpackError:
        return math.inf
    gram = materialize(square, shape, clock)
    trace = float(gram.diagonal().sum())
    gram.neg_()
    tried = guess * (1.0 + ABOVE_ESTIMATE)
    gram.diagonal().add_(tried)
    _, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        return math.inf
    return root(tried + cholesky_error(size, trace + size * guess))


def _adjoint_batched(
    apply: Callable[[Tensor], Tensor], in_shape: tuple[int, ...]
) -> Callable[[Tensor], Tensor]:
    def transposed(y: Tensor) -> Tensor:
        like = torch.zeros(y.shape[0], *in_shape, dtype=torch.float64)
        return _adjoint(apply, like)(y)

    return transposed


def power_iteration_norm(
    apply: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    *,
    steps: int = 100,
    seed: int = 0,
    clock: Clock = UNLIMITED,
) -> float:
    """The papers' norm: a power-iteration LOWER estimate. Only for ``soundness: "estimate"``."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(1, *shape, dtype=torch.float64, generator=generator)
    adjoint = _adjoint(apply, v)
    norm = 0.0
    for _ in range(steps):
        clock.check()
        v = v / nonzero(v.norm())
        image = apply(v)
        norm = float(image.norm())
        v = adjoint(image)
    return norm
