"""Norms of convolutions on a torus, which bound those of zero-padded ones from above.

A zero-padded convolution reads a window of the torus without wrapping, so T = R C E with
restrictions R, E and the circulant C (methods-lipschitz 7.2); conjugating C by diag(exp(i theta x))
keeps that true for every theta. Hence the largest singular value over SHIFTED frequencies bounds
|T| for every shift: a half-step shift steps over a smooth kernel's peak at frequency zero, which
the plain torus overestimates. With shifts 0 and 1/2 the grid is symmetric, so half of the
frequencies suffice for real kernels.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

__all__ = ["torus_norm"]

#: Shifts of the grid, in grid steps.
SHIFTS = ((0.0, 0.0), (0.5, 0.5), (0.0, 0.5), (0.5, 0.0))
#: Matrices with more rows are not decomposed one by one: that they stay below one is proved.
DECOMPOSED_ROWS = 64
#: Entries of the matrices that are looked at together: 32 MB each time they are written.
ENTRIES = 2**21
_U64 = 2.0**-53


def torus_norm(
    blocks: Tensor, grid: tuple[int, int], *, ceiling: float = math.inf, floor: float = 0.0
) -> float:
    """Upper bound on the norm of a stride-1 convolution on a torus of ``grid`` [h, w], at most
    ``ceiling``. blocks [out, in, kh, kw], float64; not refined further once it is below ``floor``.
    """
    grams = _Autocorrelation(blocks) if min(blocks.shape[:2]) > DECOMPOSED_ROWS else None
    bound = ceiling
    for shift in SHIFTS:
        if bound <= floor:
            return bound
        if grams is None:
            twisted = _decomposed(blocks, grid, shift)
        else:
            twisted = _proved(grams, torch.cartesian_prod(*_frequencies(grid, shift)), bound)
        if shift == (0.5, 0.5) and twisted > 0.996 * bound:
            return min(bound, twisted)
        bound = min(bound, twisted)
    return bound


def _frequencies(grid: tuple[int, int], shift: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Angles of the rows and of half of the columns."""
    height, width = grid
    half = width // 2 + 1 if shift[1] == 0.0 else (width + 1) // 2
    rows = 2 * math.pi * (torch.arange(height, dtype=torch.float64) + shift[0]) / height
    return rows, 2 * math.pi * (torch.arange(half, dtype=torch.float64) + shift[1]) / width


def _root(square: float) -> float:
    return math.sqrt(max(square, 0.0)) * (1.0 + 1e-12)


def _decomposed(blocks: Tensor, grid: tuple[int, int], shift: tuple[float, float]) -> float:
    """The norm at one shift, by the eigenvalues of the Gram matrix at every frequency."""
    rows_of_grid, columns_of_grid = _frequencies(grid, shift)
    phase_h = _phases_of(rows_of_grid, blocks.shape[2])
    phase_w = _phases_of(columns_of_grid, blocks.shape[3])
    symbol = torch.einsum("oipq,hp->hoiq", blocks.to(torch.complex128), phase_h)
    symbol = torch.einsum("hoiq,wq->hwoi", symbol, phase_w)
    symbol = symbol.reshape(-1, blocks.shape[0], blocks.shape[1])
    if symbol.shape[1] > symbol.shape[2]:
        symbol = symbol.mT
    frobenius = symbol.abs().square().sum((1, 2))
    rows, columns = symbol.shape[1:]
    taps = blocks.shape[2] * blocks.shape[3]
    slack = float(frobenius.max()) * (columns + 30 * rows + 16 * taps) * 8 * _U64
    return _root(_largest_eigenvalue(symbol @ symbol.mH) + slack)


def _phases_of(frequency: Tensor, taps: int) -> Tensor:
    angle = -frequency[:, None] * torch.arange(taps, dtype=torch.float64)
    return torch.complex(torch.cos(angle), torch.sin(angle))


def _largest_eigenvalue(grams: Tensor) -> float:
    """Largest eigenvalue among Hermitian matrices [n, r, r] >= 0.

    lambda <= |G^4|_F^(1/4) is cheap and rules most matrices out; the rest are decomposed.
    """
    scale = float(grams.abs().max())
    if scale == 0.0:
        return 0.0
    if grams.shape[0] > 64 and grams.shape[1] > 4:
        fourth = grams / scale
        fourth = fourth @ fourth
        fourth = fourth @ fourth
        ceiling = torch.linalg.matrix_norm(fourth).pow(0.25) * scale * (1.0 + 1e-9)
        order = torch.argsort(ceiling, descending=True)
        grams, ceiling = grams[order], ceiling[order]
    else:
        ceiling = torch.full((grams.shape[0],), math.inf, dtype=torch.float64)
    best, start, block = 0.0, 0, 16 if grams.shape[1] > 4 else grams.shape[0]
    while start < grams.shape[0] and float(ceiling[start]) > best:
        values = torch.linalg.eigvalsh(grams[start : start + block])[:, -1]
        best = max(best, float(values.max()))
        start += block
    return best


class _Autocorrelation:
    """The Gram matrices of all frequencies, S(f) S(f)^H = sum over d of A_d exp(-i f.d).

    With A_d the sum of K_p K_q^T over taps p - q = d, of which A_-d is the transpose. ``slack``
    bounds how far (2-norm) any computed Gram matrix is from the exact one.
    """

    def __init__(self, blocks: Tensor) -> None:
        if blocks.shape[0] > blocks.shape[1]:
            blocks = blocks.transpose(0, 1)
        self.rows, columns, *kernel = blocks.shape
        height, width = kernel
        taps = [*itertools.product(range(height), range(width))]
        sums: dict[tuple[int, int], Tensor] = {}
        for (p, first), (q, second) in itertools.product(enumerate(taps), repeat=2):
            if p >= q:
                offset = (first[0] - second[0], first[1] - second[1])
                product = blocks[:, :, *first] @ blocks[:, :, *second].T
                sums[offset] = sums[offset] + product if offset in sums else product
        self.offsets = torch.tensor(list(sums), dtype=torch.float64)
        symmetric = [a + a.T if any(d) else a for d, a in sums.items()]
        self.symmetric = torch.stack(symmetric).flatten(1)
        self.antisymmetric = torch.stack([a - a.T for a in sums.values()]).flatten(1)
        # Entries: inner products of ``columns``, sums over taps and offsets, angles off by a few
        # ulps of up to 2 pi (height + width); |K_p| |K_q|^T sum to taps |K|_F^2 in 2-norm.
        terms = columns + len(taps) + 2 * len(sums) + 32 * (height + width) + 64
        self.slack = 8 * terms * _U64 * len(taps) * float(blocks.square().sum())

    def at(self, frequencies: Tensor) -> Tensor:
        """[n, rows, rows] complex, Hermitian, at frequencies [n, 2]."""
        angles = frequencies @ self.offsets.T
        real, imaginary = angles.cos() @ self.symmetric, -(angles.sin() @ self.antisymmetric)
        return torch.complex(real, imaginary).reshape(-1, self.rows, self.rows)


def _proved(grams: _Autocorrelation, frequencies: Tensor, ceiling: float) -> float:
    """The norm at one shift, or ``ceiling`` once it is known to be no less.

    Eigenvalues cost ten times a Cholesky factorisation, and one that runs to completion on s I - G
    proves that no eigenvalue of G is above s, up to its backward error (Higham 2002, theorem 10.5;
    Rump 2006). Where it fails, s is raised to the largest eigenvalue there; in a random order of n
    frequencies that happens about log n times.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(frequencies), generator=generator)
    identity = torch.eye(grams.rows, dtype=torch.complex128)
    # Backward errors: of eigenvalues, rows u |G|_F, of factorisations, (rows + 1) u trace(s I - G).
    rounding = (256 * math.sqrt(grams.rows) + 32 * (grams.rows + 64)) * grams.rows * _U64
    square = 0.0
    together = max(1, ENTRIES // grams.rows**2)
    for chosen in (order[:1], *order[1:].split(together)):
        matrices = grams.at(frequencies[chosen])
        _, failed = torch.linalg.cholesky_ex(square * identity - matrices)
        for matrix in matrices[failed != 0]:
            # What one of these raised the bound to may be above the next.
            if int(torch.linalg.cholesky_ex(square * identity - matrix)[1]):
                largest = float(torch.linalg.eigvalsh(matrix)[-1])
                # A little more, so that its equals at mirrored frequencies pass.
                square = max(square, largest * (1.0 + 1e-9))
                if _root(square) >= ceiling:
                    return ceiling
    return min(ceiling, _root(square * (1.0 + rounding) + grams.slack))
