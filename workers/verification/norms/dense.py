"""Sound upper bounds on the largest singular value of a matrix, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.norms.backward_errors import cholesky_error, gram_error
from workers.verification.norms.circulant import root
from workers.verification.numerics import MANY, nonzero, raised

__all__ = ["DENSE_SIDE", "dense_norm"]

#: Largest side of which a dense matrix' Gram eigenvalues are computed, and from which on they are
#: bounded by a Cholesky factorisation first, which takes a twentieth of the time.
DENSE_SIDE, CHOLESKY_FIRST = 4608, 1024
#: Power steps of the guess that is proved then, and shares by which |A|^2 may lie above it.
GUESS_STEPS, ABOVE_GUESS = 32, (1e-6, 1e-5)
#: Blocks of rows of a Gram matrix of which only the lower half is made.
GRAM_BLOCKS = 8


def dense_norm(matrix: Tensor, clock: Clock = UNLIMITED) -> float:
    """Upper bound on the largest singular value of matrix [m, n], tight to about 1e-8 relative.

    Gram matrix of the smaller side and its eigenvalues in float64, plus their backward error
    (``gram_error``); beyond ``DENSE_SIDE``, the lesser of Frobenius and Schur.
    """
    matrix = matrix.detach().to(torch.float64)
    if matrix.numel() == 0:
        return 0.0
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    scale = float(matrix.abs().max())
    if not math.isfinite(scale):
        return math.inf
    if scale == 0.0:
        return 0.0
    # A power of two, so that squares neither overflow nor underflow.
    scale = 2.0 ** math.frexp(scale)[1]
    matrix = matrix / scale
    rows, columns = matrix.shape
    clock.check()
    frobenius_square = raised(float(matrix.square().sum()), rows * columns)
    schur = float(matrix.abs().sum(0).max()) * float(matrix.abs().sum(1).max())
    square = min(frobenius_square, raised(schur, MANY))
    if rows <= DENSE_SIDE:
        gram = _lower_gram(matrix, clock)
        found = _proved_eigenvalue(gram, clock) if rows > CHOLESKY_FIRST else math.inf
        if found == math.inf:
            clock.check()
            found = float(torch.linalg.eigvalsh(gram, UPLO="L")[-1])
        square = min(square, found + gram_error(rows, columns, frobenius_square))
    # Entries lost to underflow by the scaling are below 2^-1000 of the largest.
    return raised(scale * root(square))


def _lower_gram(matrix: Tensor, clock: Clock) -> Tensor:
    """A A^T [rows, rows], of which what is above the diagonal is only partly there."""
    rows = len(matrix)
    if rows <= CHOLESKY_FIRST:
        clock.check()
        return matrix @ matrix.T
    gram = matrix.new_zeros(rows, rows)
    step = -(-rows // GRAM_BLOCKS)
    for start in range(0, rows, step):
        clock.check()
        stop = min(start + step, rows)
        gram[start:stop, :stop] = matrix[start:stop] @ matrix[:stop].T
    return gram


def _proved_eigenvalue(gram: Tensor, clock: Clock) -> float:
    """Upper bound on the eigenvalues of a matrix >= 0 given by its lower half, or infinity.

    What power steps find, raised a little to s, if the factorisation of s I - G runs to completion.
    """
    size = len(gram)
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(size, dtype=torch.float64, generator=generator)
    lower, guess = gram.tril(-1), 0.0
    diagonal = gram.diagonal()
    for _ in range(GUESS_STEPS):
        vector = vector / nonzero(vector.norm())
        vector = lower @ vector + lower.T @ vector + diagonal * vector
        guess = float(vector.norm())
    trace = float(diagonal.sum())
    for share in ABOVE_GUESS:
        clock.check()
        tried = guess * (1.0 + share)
        shifted = gram.neg()
        shifted.diagonal().add_(tried)
        if not int(torch.linalg.cholesky_ex(shifted)[1]):
            return tried + cholesky_error(size, trace + size * tried)
    return math.inf
