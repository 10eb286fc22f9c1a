"""Norms of circulant convolutions, which bound those of zero-padded ones from above.

A zero-padded convolution reads a window of a periodic map without wrapping, so T = R C E with
restrictions R, E and the circulant C, whose norm is the largest over its frequencies (Sedghi,
Gupta, Long, ICLR 2019). Conjugating C by diag(exp(i theta x)) keeps that true for every theta, so
the largest singular value over SHIFTED frequencies bounds |T| for every shift: a half-step shift
steps over a smooth kernel's peak at frequency zero, which the unshifted circulant overestimates.
With shifts 0 and 1/2 the grid is symmetric, so half of the frequencies suffice for real kernels.

A kernel that is orthogonal up to rounding needs no frequencies (``everywhere_norm``): its
correlations with itself are the unit matrix and next to nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from workers.verification.block_sizes import GRAM_ENTRIES
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.norms.backward_errors import cholesky_error, hermitian_error
from workers.verification.numerics import MANY, raised, sum_error
from workers.verification.rounding import unit_roundoff

__all__ = ["CLOSE", "circulant_norm", "everywhere_norm", "periodic_norm", "polyphase", "root"]

#: Shifts of the grid, in grid steps.
SHIFTS = ((0.0, 0.0), (0.5, 0.5), (0.0, 0.5), (0.5, 0.0))
#: Kernels of more taps are not correlated with themselves.
FEW_TAPS = 25
#: Where the shift of half a step gains less than this share, the other shifts are left out.
GAIN = 0.996
#: A bound that is at most this share above what the norm is known to be is not refined.
CLOSE = 2e-4


def circulant_norm(
    blocks: Tensor,
    grid: tuple[int, int],
    *,
    ceiling: float = math.inf,
    floor: float = 0.0,
    clock: Clock = UNLIMITED,
) -> float:
    """Upper bound on the norm of a stride-1 circulant convolution on ``grid`` [h, w], at most
    ``ceiling``. blocks [out, in, kh, kw], float64; not refined further once it is below ``floor``.
    """
    taps = blocks.shape[2] * blocks.shape[3]
    grams = _Autocorrelation(blocks) if taps <= FEW_TAPS else _Symbols(blocks)
    bound = ceiling
    for shift in SHIFTS:
        if bound <= floor:
            return bound
        twisted = _proved(grams, torch.cartesian_prod(*_frequencies(grid, shift)), bound, clock)
        if shift == (0.5, 0.5) and twisted > GAIN * bound:
            return min(bound, twisted)
        bound = min(bound, twisted)
    return bound


def periodic_norm(blocks: Tensor, grid: tuple[int, int], clock: Clock = UNLIMITED) -> float:
    """Upper bound on the norm of a stride-1 convolution whose window goes around the image [h, w],
    tight to about 1e-7 relative, of a nearly orthogonal kernel to ``CLOSE``. blocks [out, in, kh,
    kw], float64, of any size.

    Its eigenspaces are the image's own frequencies: no shift is one of them.
    """
    taps = blocks.shape[2] * blocks.shape[3]
    # Where no taps meet, no row or column is longer than the norm.
    squares = blocks.square()
    least = math.sqrt(max(float(squares.sum((1, 2, 3)).max()), float(squares.sum((0, 2, 3)).max())))
    bound = everywhere_norm(blocks, least, clock)
    if bound < math.inf:
        return bound
    grams = _Autocorrelation(blocks) if taps <= FEW_TAPS else _Symbols(blocks)
    frequencies = torch.cartesian_prod(*_frequencies(grid, (0.0, 0.0)))
    return _proved(grams, frequencies, math.inf, clock)


def everywhere_norm(blocks: Tensor, least: float, clock: Clock = UNLIMITED) -> float:
    """Upper bound on the symbol's norm at EVERY frequency, so on maps of any size, with any
    border; infinite where that is more than ``CLOSE`` above ``least``.

    blocks [out, in, kh, kw], float64. With A_d, the sum of K_p K_q^T over taps p - q = d, the Gram
    matrix at f is sum_d A_d exp(-i f.d) and A_-d the transpose of A_d, so its norm is at most
    |A_0| + 2 sum over d > 0 of |A_d|: of an orthogonal kernel 1 + 2 sum 0. |A_d|^4 is at most
    |A_d^T A_d|_F^2, which for n x n rounding errors is some n^(1/4) above |A_d|^4.
    """
    grams = _Grams(blocks)
    if len(grams.taps) > FEW_TAPS:
        return math.inf
    enough = (least * (1.0 + CLOSE)) ** 2
    square = 0.0
    for offset, part in _correlations(grams):
        clock.check()
        size = raised(float(part.norm()), grams.rows**2)
        if any(offset):
            # No matrix of rank n has a smaller norm than this.
            if square + 2.0 * size / math.sqrt(grams.rows) > enough:
                return math.inf
            product = float((part.T @ part).norm())
            found = raised(product, grams.rows**2) + sum_error(grams.rows) * size**2
            square += 2.0 * min(size, root(found))
        else:
            if size / math.sqrt(grams.rows) > enough:
                return math.inf
            largest = float(torch.linalg.eigvalsh(part)[-1])
            square = raised(largest) + hermitian_error(grams.rows, largest)
        if square > enough:
            return math.inf
    return root(square + grams.slack)


def polyphase(kernel: Tensor, stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """Stride-1 blocks [out, in * s_h * s_w, ceil(k_h / s_h), ceil(k_w / s_w)] of a strided kernel.

    Space-to-depth permutes coordinates, so the norm is the same.
    """
    out_channels, in_channels, kernel_h, kernel_w = kernel.shape
    (stride_h, stride_w), (d_h, d_w) = stride, dilation
    full_h, full_w = d_h * (kernel_h - 1) + 1, d_w * (kernel_w - 1) + 1
    blocks_h, blocks_w = -(-full_h // stride_h), -(-full_w // stride_w)
    full = kernel.new_zeros(out_channels, in_channels, blocks_h * stride_h, blocks_w * stride_w)
    full[:, :, :full_h:d_h, :full_w:d_w] = kernel
    full = full.reshape(out_channels, in_channels, blocks_h, stride_h, blocks_w, stride_w)
    return full.permute(0, 1, 3, 5, 2, 4).reshape(out_channels, -1, blocks_h, blocks_w)


def _frequencies(grid: tuple[int, int], shift: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Angles of the rows and of half of the columns."""
    height, width = grid
    half = width // 2 + 1 if shift[1] == 0.0 else (width + 1) // 2
    rows = 2 * math.pi * (torch.arange(height, dtype=torch.float64) + shift[0]) / height
    return rows, 2 * math.pi * (torch.arange(half, dtype=torch.float64) + shift[1]) / width


def root(square: float) -> float:
    """The square root, rounded up."""
    return raised(math.sqrt(max(square, 0.0)))


class _Grams:
    """The matrices S(f) S(f)^H, S(f) = sum over taps p of K_p exp(-i f.p).

    blocks [out, in, kh, kw]; the smaller of out and in is ``rows``. ``slack`` bounds how far
    (2-norm) any computed one is from the exact one; ``entries`` is what one needs.
    """

    def __init__(self, blocks: Tensor) -> None:
        self.blocks = blocks if blocks.shape[0] <= blocks.shape[1] else blocks.transpose(0, 1)
        self.rows, columns, height, width = self.blocks.shape
        self.taps = [*itertools.product(range(height), range(width))]
        self.entries = self.rows * columns
        # Inner products of ``columns``, sums over taps (and offsets, of which there are at most
        # four times as many), angles off by a few ulps of up to 2 pi (height + width); the sum of
        # |K_p| |K_q|^T has a 2-norm of at most taps |K|_F^2.
        terms = columns + 10 * len(self.taps) + 32 * (height + width) + 64
        share = 8 * terms * unit_roundoff(torch.float64) * len(self.taps)
        self.slack = share * float(blocks.square().sum())

    def at(self, frequencies: Tensor) -> Tensor:
        """[n, rows, rows] complex, Hermitian, at frequencies [n, 2]."""
        raise TypeError


def _correlations(grams: _Grams) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """A_d for the offsets d >= 0, 0 first: the sums of K_p K_q^T over taps p - q = d."""
    pairs: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    for (p, first), (q, second) in itertools.product(enumerate(grams.taps), repeat=2):
        if p >= q:
            offset = (first[0] - second[0], first[1] - second[1])
            both = grams.blocks[:, :, *first], grams.blocks[:, :, *second]
            pairs.setdefault(offset, []).append(both)
    for offset, ((left, right), *others) in pairs.items():
        total = left @ right.T
        for left, right in others:
            total = total + left @ right.T
        yield offset, total


class _Symbols(_Grams):
    """As they are defined."""

    def __init__(self, blocks: Tensor) -> None:
        super().__init__(blocks)
        self.kernels = self.blocks.flatten(2).permute(2, 0, 1).flatten(1)
        self.places = torch.tensor(self.taps, dtype=torch.float64)

    def at(self, frequencies: Tensor) -> Tensor:
        angles = frequencies @ self.places.T
        symbols = torch.complex(angles.cos() @ self.kernels, -(angles.sin() @ self.kernels))
        symbols = symbols.reshape(len(frequencies), self.rows, -1)
        return symbols @ symbols.mH


class _Autocorrelation(_Grams):
    """As a sum over offsets d of A_d exp(-i f.d), A_d the sum of K_p K_q^T over taps p - q = d, of
    which A_-d is the transpose: far cheaper per frequency where taps are few."""

    def __init__(self, blocks: Tensor) -> None:
        super().__init__(blocks)
        sums = dict(_correlations(self))
        self.offsets = torch.tensor(list(sums), dtype=torch.float64)
        self.symmetric = torch.stack([a + a.T if any(d) else a for d, a in sums.items()]).flatten(1)
        self.antisymmetric = torch.stack([a - a.T for a in sums.values()]).flatten(1)

    def at(self, frequencies: Tensor) -> Tensor:
        angles = frequencies @ self.offsets.T
        real, imaginary = angles.cos() @ self.symmetric, -(angles.sin() @ self.antisymmetric)
        return torch.complex(real, imaginary).reshape(-1, self.rows, self.rows)


def _proved(grams: _Grams, frequencies: Tensor, ceiling: float, clock: Clock = UNLIMITED) -> float:
    """The norm at one shift, or ``ceiling`` once it is known to be no less.

    Eigenvalues cost ten times a Cholesky factorisation, and one that runs to completion on s I - G
    proves that no eigenvalue of G is above s, up to its backward error (Higham 2002, theorem 10.5;
    Rump 2006). Where it fails, s is raised to the largest eigenvalue there; in a random order of n
    frequencies that happens about log n times.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(frequencies), generator=generator)
    identity = torch.eye(grams.rows, dtype=torch.complex128)
    square = 0.0
    together = max(1, GRAM_ENTRIES // grams.entries)
    for chosen in (order[:1], *order[1:].split(together)):
        clock.check()
        matrices = grams.at(frequencies[chosen])
        while True:
            _, failed = torch.linalg.cholesky_ex(square * identity - matrices)
            matrices = matrices[failed != 0]
            if not len(matrices):
                break
            clock.check()
            largest = float(torch.linalg.eigvalsh(matrices[0])[-1])
            # A little more, so that its equals at mirrored frequencies pass.
            square = max(square, raised(largest, MANY))
            if root(square) >= ceiling:
                return ceiling
            matrices = matrices[1:]
    # trace(s I - G) <= rows s.
    factorised = 8 * cholesky_error(grams.rows, grams.rows * square)
    error = hermitian_error(grams.rows, square) + factorised + grams.slack
    return min(ceiling, root(square + error))
