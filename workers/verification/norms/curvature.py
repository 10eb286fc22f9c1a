"""Largest eigenvalues of A^T A, proved by a Cholesky factorisation: curvatures of smooth heads.

A Lanczos value is a lower estimate, so it is only a guess. It is raised a little to m, and m is a
bound iff the factorisation of (m - tau) I - A^T A runs to completion: then no eigenvalue of the
computed matrix is below -tau / 2 (Higham 2002, theorem 10.5; Rump 2006), and tau / 2 covers what
computing the matrix has rounded. A guess that is too low can not pass.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock

__all__ = ["bounds_eigenvalues", "largest_eigenvalue"]

#: Raises of the guess that are tried, then the trace.
RAISES = (1e-6, 1e-3, 3e-2)
#: Sides up to which the guess is an eigenvalue of the matrix itself.
SMALL = 128
_U64 = 2.0**-53


def bounds_eigenvalues(gram: Tensor, inner: int, bound: float) -> bool:
    """Whether it is proved that no eigenvalue of G exceeds ``bound``.

    gram [n, n] float64: G = A^T A as computed, A with n columns and ``inner`` rows of normal
    numbers or zeros; bound > 0.
    """
    n = len(gram)
    trace = float(gram.diagonal().sum())
    # |computed G - G|_2 <= gamma_inner |A|_F^2, and the factorisation's own backward error.
    tau = 4 * (n + inner + 64) * _U64 * (trace + n * bound)
    shifted = -gram
    shifted.diagonal().add_(bound - tau)
    _, failed = torch.linalg.cholesky_ex(shifted)
    return bound > tau and not int(failed)


def largest_eigenvalue(matrix: Tensor, clock: Clock = UNLIMITED) -> float:
    """Upper bound on the largest eigenvalue of A^T A, tight to about 1e-6 relative.

    matrix [rows, columns] float64. Infinite where it is not finite. Raises OutOfTime.
    """
    matrix = matrix.detach().to("cpu", torch.float64)
    if matrix.numel() == 0 or not bool(torch.isfinite(matrix).all()):
        return 0.0 if matrix.numel() == 0 else torch.inf
    scale = float(matrix.abs().max())
    if scale == 0.0:
        return 0.0
    # A power of two, so that squares neither overflow nor lose more than the slack below.
    scale = 2.0 ** np.frexp(scale)[1]
    matrix = matrix / scale
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    clock.check()
    gram = matrix.T @ matrix
    trace = float(gram.diagonal().sum())
    guess = _guess(gram, clock)
    bound = trace * (1.0 + (matrix.numel() + 64) * 2 * _U64)
    for share in RAISES:
        raised = guess * (1.0 + share)
        clock.check()
        if raised < bound and bounds_eigenvalues(gram, matrix.shape[0], raised):
            bound = raised
            break
    return bound * scale**2 * (1.0 + 1e-12)


def _guess(gram: Tensor, clock: Clock) -> float:
    """The largest eigenvalue as Lanczos finds it; nothing rests on it."""
    if len(gram) <= SMALL:
        return float(torch.linalg.eigvalsh(gram)[-1])

    def product(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        clock.check()
        image: NDArray[np.float64] = (gram @ torch.from_numpy(vector.ravel())).numpy()
        return image

    start = np.random.default_rng(0).standard_normal(len(gram))
    operator = LinearOperator(tuple(gram.shape), matvec=product, dtype=np.float64)
    try:
        found = eigsh(operator, k=1, which="LA", tol=1e-8, v0=start, return_eigenvectors=False)
    except ArpackError:
        return float(torch.linalg.eigvalsh(gram)[-1])
    return float(found[0])
