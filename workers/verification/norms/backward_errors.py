"""Backward errors of the float64 factorisations that prove norms: what they may be off by at most.

LAPACK's routines answer exactly for a matrix that is near the given one; how near, in units of the
unit roundoff u = 2^-53, is stated here once, several times larger than the theorems say.
"""

from __future__ import annotations

import math

import torch

from workers.verification.numerics import SECOND_ORDER
from workers.verification.rounding import unit_roundoff

__all__ = ["cholesky_error", "gram_error", "hermitian_error"]

U64 = unit_roundoff(torch.float64)


def gram_error(rows: int, columns: int, frobenius_square: float) -> float:
    """How far the computed largest eigenvalue of A A^T may be below the exact one, for real A.

    A [rows, columns]; frobenius_square: at least |A|_F^2. Inner products of ``columns`` numbers
    are off by gamma_n |a_i| |a_j| (Higham 2002, section 3.1), which is a matrix of norm at most
    gamma_n |A|_F^2; eigenvalues by a modest multiple of ``rows`` u |A A^T| (Higham 2002, section
    21; LAPACK Users' Guide, section 4.7).
    """
    share = (columns + 30 * rows + 64) * 2 * U64
    return share * frobenius_square * SECOND_ORDER


def hermitian_error(rows: int, largest: float) -> float:
    """The same for a complex Hermitian matrix [rows, rows] >= 0 that is given: a modest multiple of
    rows u |G|_F, where |G|_F <= sqrt(rows) largest."""
    return 256 * math.sqrt(rows) * rows * U64 * largest


def cholesky_error(rows: int, trace: float) -> float:
    """If the Cholesky factorisation of a real symmetric matrix [rows, rows] runs to completion, no
    eigenvalue of it is below minus this.

    trace: of the matrix, or more. (n + 1) u trace in Higham 2002, theorem 10.5, and Rump 2006; four
    times as much here. For complex Hermitian matrices take eight times this.
    """
    return 4 * (rows + 64) * U64 * trace
