"""Norms of skew convolutions, by one Cholesky factorisation for each frequency.

A kernel A with A_(-p) = -A_p^T for the taps p around its middle, under zero padding, is a part of
the circulant map on any grid of at least n + k // 2 places a side: what a window reads beyond the
image are zeros of the grid. That map is A(f) = sum_p A_p exp(-i f.p) at the frequencies f, and
H(f) = i A(f) is Hermitian: real part sum_p A_p sin f.p, imaginary part sum_p A_p cos f.p. H(-f) is
-conj H(f), so that over all f the largest eigenvalues of H alone are the norm. No Gram matrix is
made, and s I - H(f) > 0 takes a third of a matrix product (Higham 2002, theorem 10.5; Rump 2006).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from workers.verification.block_sizes import GRAM_ENTRIES
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.norms.backward_errors import cholesky_error
from workers.verification.numerics import nonzero, raised
from workers.verification.rounding import unit_roundoff

__all__ = ["skew_norm", "skew_norm_cost"]

#: Where the trials begin at least, of weights up to 1: on a small image even a large kernel may
#: vanish.
LEAST = 2.0**-30
#: Power steps of the guess, the share by which it is raised at first, twice as much each time that
#: it fails, and how often that is tried.
GUESS_STEPS, RAISE, MOST_RAISES = 16, 0.01, 16


def _grid(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    return size[0] + shape[2] // 2, size[1] + shape[3] // 2


def skew_norm_cost(shape: tuple[int, ...], size: tuple[int, int]) -> float:
    """Multiplications, about, of ``skew_norm`` for a kernel [c, c, h, w] on images of ``size``."""
    grid = _grid(shape, size)
    return grid[0] * grid[1] * 4 / 3 * float(shape[0]) ** 3


def skew_norm(weight: Tensor, size: tuple[int, int], clock: Clock = UNLIMITED) -> float:
    """Upper bound on the norm of a zero-padded skew convolution, within about 2 % of its torus'.

    weight [c, c, h, w] float64, h and w odd, exactly its own negative transpose; size: [h, w] of
    the images. Infinite where the weight is not finite. Raises OutOfTime.
    """
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if largest == 0.0 or not math.isfinite(largest):
        return 0.0 if largest == 0.0 else math.inf
    # A power of two, so that nothing overflows, and what underflows is below the slack.
    scale = 2.0 ** math.frexp(largest)[1]
    weight = weight.to("cpu", torch.float64) / scale
    channels, _, height, width = weight.shape
    middle = (height // 2, width // 2)
    taps = [
        (row - middle[0], column - middle[1])
        for row, column in itertools.product(range(height), range(width))
        if (row, column) >= middle
    ]
    # A tap and its mirror image together: A_p + A_p^T with the sine, A_p - A_p^T with the cosine.
    kernels = torch.stack([weight[:, :, r + middle[0], c + middle[1]] for r, c in taps])
    mirrored = kernels.transpose(1, 2)
    symmetric, skew = (kernels + mirrored).flatten(1), (kernels - mirrored).flatten(1)
    # The middle is its own mirror image.
    skew[0] = kernels[0].flatten()
    symmetric[0] = 0.0
    places = torch.tensor(taps, dtype=torch.float64)
    grid = _grid(tuple(weight.shape), size)
    steps = [2 * math.pi * torch.arange(n, dtype=torch.float64) / n for n in grid]
    frequencies = torch.cartesian_prod(*steps)

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(channels, 1, generator=generator, dtype=torch.float64)
    start = (start / start.norm()).to(torch.complex128)
    identity = torch.eye(channels, dtype=torch.complex128)
    bound = LEAST
    for part in frequencies.split(max(1, GRAM_ENTRIES // channels**2)):
        clock.check()
        angles = part @ places.T
        real, imaginary = angles.sin() @ symmetric, angles.cos() @ skew
        matrices = torch.complex(real, imaginary).reshape(-1, channels, channels)
        bound = max(bound, _guess(matrices, start) * (1.0 + RAISE))
        for raises in range(MOST_RAISES):
            clock.check()
            _, failed = torch.linalg.cholesky_ex(bound * identity - matrices)
            matrices = matrices[failed != 0]
            if not len(matrices):
                break
            bound += bound * math.ldexp(RAISE, raises)
        else:
            return math.inf
    # trace H = 0 up to rounding; angles are off by a few ulps of up to 2 pi (h + w), sums by a few
    # more, entry by entry, and |sum_p |A_p||_F <= sqrt(taps) |A|_F.
    count = height * width
    lost = 16 * (count + 32 * (height + width) + 64) * unit_roundoff(torch.float64)
    lost *= math.sqrt(count) * raised(float(weight.norm()), weight.numel())
    factorised = 8 * cholesky_error(channels, 2 * channels * (bound + lost))
    return raised((bound + factorised + lost) * scale)


def _guess(matrices: Tensor, start: Tensor) -> float:
    """The largest norm among Hermitian matrices [n, c, c] as power steps find it, from below."""
    vectors = start.expand(len(matrices), -1, -1)
    largest = torch.zeros(len(matrices), 1, 1, dtype=torch.float64)
    for _ in range(GUESS_STEPS):
        vectors = matrices @ vectors
        largest = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        vectors = vectors / nonzero(largest)
    return float(largest.max())
