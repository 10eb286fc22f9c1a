"""Largest eigenvalues of A^T A, proved by a Cholesky factorisation: curvatures of smooth heads.

A Lanczos value is a lower estimate, so it is only a guess. It is raised a little to m, and m is a
bound iff the factorisation of (m - tau) I - A^T A runs to completion: then no eigenvalue of the
computed matrix is below -tau / 2 (Higham 2002, theorem 10.5; Rump 2006), and tau / 2 covers what
computing the matrix has rounded. A guess that is too low can not pass.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.norms.backward_errors import cholesky_error, gram_error
from workers.verification.numerics import MANY, raised

__all__ = ["bounds_eigenvalues", "largest_eigenvalue", "store_numbers", "stored_numbers"]

#: Raises of the guess that are tried, then the trace.
RAISES = (1e-6, 1e-3, 3e-2)
#: Sides up to which the guess is an eigenvalue of the matrix itself.
SMALL = 128


def bounds_eigenvalues(gram: Tensor, inner: int, bound: float) -> bool:
    """Whether it is proved that no eigenvalue of G exceeds ``bound``.

    gram [n, n] float64: G = A^T A as computed, A with n columns and ``inner`` rows of normal
    numbers or zeros; bound > 0.
    """
    n = len(gram)
    trace = float(gram.diagonal().sum())
    lost = gram_error(n, inner, raised(trace, MANY))
    tau = raised(lost + cholesky_error(n, trace + n * bound))
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
    bound = raised(trace, max(MANY, 2 * matrix.numel()))
    for share in RAISES:
        tried = guess * (1.0 + share)
        clock.check()
        if tried < bound and bounds_eigenvalues(gram, matrix.shape[0], tried):
            bound = tried
            break
    return raised(bound) * scale**2


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


def stored_numbers(path: Path) -> dict[str, float]:
    """What ``store_numbers`` wrote; nothing where that is missing or damaged."""
    try:
        stored = json.loads(path.read_text())
        numbers = {str(key): float(value) for key, value in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return numbers if all(0.0 <= value < math.inf for value in numbers.values()) else {}


def store_numbers(path: Path, numbers: dict[str, float]) -> None:
    """Write proved numbers by name, in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.{id(numbers)}.tmp")
    temporary.write_text(json.dumps(numbers))
    temporary.replace(path)
