"""Errors of arithmetic, and upper bounds on operator norms with every rounding counted.

A sum of n products, in any order, with or without fused multiply-add, is off by at most gamma_n
times the sum of the magnitudes (Higham 2002, section 3.1), gamma_n = n u / (1 - n u), u = 2^-24 in
float32 and 2^-53 in float64, plus what underflow takes. numpy's matrix products are such sums.

For every matrix |B|^2 = |B B^H|; so squarings G_1 = B B^H, G_(t+1) = G_t G_t^H give
|B| <= |G_t|_F^(1 / 2^t), above the norm by at most the rank's 2^(t+1)-th root. A computed product
of [r, n] by [n, r] is off by at most gamma_n |G|_F^2 in the Frobenius norm (real; 2 gamma_2n if
complex); on the way back every step adds it. No power iteration, no eigenvalues.

A convolution with zero padding and stride is, up to an order of coordinates, a part of a circular
one of stride 1 on a torus with room for the kernel, so that no window wraps around. Its norm is at
most the largest |S(f)| over the torus' frequencies, S(f) = sum over taps q of K_q exp(i f.q).
Twisting all coordinates by exp(i t.x) moves the frequencies by t and changes no norm of the part:
every shift of the grid of frequencies gives a bound, the least counts.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from check.file import Array

#: Raises a number >= 0 that took at most 2^11 operations of float64, each off by a factor 1 + d
#: with |d| <= 2^-53: (1 - 2^-53)^-(2^11) < 1 + 2^-41. Times DOWN it is lowered.
UP, DOWN = 1.0 + 2.0**-40, 1.0 - 2.0**-40
#: More than underflow takes from a float32 sum, per term of it (2^-126 where flushed to zero).
UNDERFLOW = 2.0**-120
#: The least number that is reckoned with here: products of it with float32 numbers are normal.
ETA = 1e-250
#: Beyond this the deployed network may overflow: the largest float32 number, rounded down.
FLOAT32_MAX = 3.4e38
#: Squarings at most, and of matrices with more than ``WIDE`` rows; a bound so close is enough.
SQUARINGS, WIDE, FEW_SQUARINGS, CLOSE = 18, 1536, 8, 1.0 + 2.0**-14
#: Numbers of symbols that are handled at once; more than angles, sines and cosines are off by.
TOGETHER, ANGLE_ERROR = 2**20, 2.0**-40

#: Halvings of an interval for the norm of a series; a bound of its square so close is enough.
HALVINGS, SHARP = 512, Fraction(1, 2**22)

Matrices = NDArray[np.float64] | NDArray[np.complex128]


def deployed(terms: float) -> float:
    """Relative error of a deployed operator with so many roundings on the way to one output."""
    return UP * terms * 2.0**-24 / (1.0 - terms * 2.0**-24) if terms < 2**23 else math.inf


def own(terms: float) -> float:
    """The same for its evaluation here (at most 2^40 terms), with 16 roundings around it."""
    return (terms + 16.0) * 2.0**-53 * 1.01


def ceiling(terms: float) -> float:
    """Magnitudes below this do not let a deployed operator overflow, whatever its order of sums."""
    return FLOAT32_MAX / (1.02 + deployed(terms))


def euclidean(values: Matrices) -> Array:
    """Upper bound on the Euclidean norm of each row; [n, ...] -> [n]."""
    flat = values.reshape(len(values), -1)
    norms = np.sqrt(np.square(flat.real).sum(1) + np.square(flat.imag).sum(1))
    # Squares below 2^-1022 may be lost: 2^-511 each in the norm.
    return np.asarray(norms * (UP + own(2 * flat.shape[1])) + 2.0**-510 * math.sqrt(flat.shape[1]))


def largest_norm(matrices: Matrices) -> float:
    """Upper bound on the norms of all matrices [k, m, n]; the lesser ones are not squared on."""
    held = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.swapaxes(1, 2)
    largest = np.abs(held).max(axis=(1, 2))
    if not np.isfinite(largest).all():
        return math.inf
    held, largest, result = held[largest > 0], largest[largest > 0], 0.0
    if not len(held):
        return result
    rows, columns = held.shape[1:]
    steps = SQUARINGS if rows <= WIDE else FEW_SQUARINGS
    # Powers of two are exact factors; what they take below 2^-1022 is far below the slack.
    powers, slack = [np.frexp(largest)[1]], list[Array]()
    held = held * np.ldexp(1.0, -powers[0])[:, None, None]
    for step in range(steps + 1):
        size = euclidean(held)
        upper = _unrolled(size, powers, slack)
        if not np.isfinite(upper).all():
            return math.inf
        lower = _unrolled(size / math.sqrt(rows), powers, [0.0 * lost for lost in slack])
        done = (upper <= CLOSE * max(result, float(lower.max()))) | (step == steps)
        result = max(result, float(upper[done].max(initial=0.0)))
        if done.all():
            break
        held, size = held[~done], size[~done]
        powers, slack = [power[~done] for power in powers], [lost[~done] for lost in slack]
        slack.append(2.0 * own(2 * columns) * size * size)
        held, columns = held @ held.conj().swapaxes(1, 2), rows
        powers.append(np.frexp(euclidean(held))[1])
        held = held * np.ldexp(1.0, -powers[-1])[:, None, None]
    return result


def _unrolled(size: Array, powers: list[NDArray[np.int32]], slack: list[Array]) -> Array:
    """Back to |A|: |B_(t-1)|^2 <= 2^(k_t) |B_t| + slack_t, and |A| = 2^(k_0) |B_0|."""
    for power, lost in zip(powers[:0:-1], slack[::-1], strict=True):
        size = np.sqrt((np.ldexp(size, power) + lost) * UP)
    return np.ldexp(size, powers[0]) * UP


def series_norm(norm: float, divisors: Sequence[int]) -> float:
    """Upper bound on |z| / |x| for z <- x + K z / c, c of ``divisors`` in turn, z = x before, and
    any skew matrix K = -K^T with |K| <= norm.

    K is normal with eigenvalues i t, |t| <= norm, so that it is the largest |p(i t)| of the
    polynomial p. Its square is a polynomial q of y = t^2; on an interval q is at most its largest
    Bernstein coefficient there. All of it is computed in rationals, the square root rounded up.
    """
    factors = [Fraction(1)]
    for divisor in divisors[::-1]:
        factors.append(factors[-1] / divisor)
    even, odd = ([(-1) ** m * f for m, f in enumerate(factors[at::2])] for at in (0, 1))
    square = [Fraction(0)] * len(factors)
    for part, shift in ((even, 0), (odd, 1)):
        for i, first in enumerate(part):
            for j, second in enumerate(part):
                square[i + j + shift] += first * second
    # Rounded up to a few digits, so that the fractions stay short.
    most = Fraction(math.ceil(norm * 2**16), 2**16) ** 2
    degree = len(square) - 1
    scaled = [part * most**place for place, part in enumerate(square)]
    whole = [
        sum(
            (scaled[i] * Fraction(math.comb(j, i), math.comb(degree, i)) for i in range(j + 1)),
            Fraction(0),
        )
        for j in range(degree + 1)
    ]
    cells, least = [(-max(whole), whole)], max(whole[0], whole[-1])
    for _ in range(HALVINGS):
        if -cells[0][0] <= least + SHARP:
            break
        row, left, right = heapq.heappop(cells)[1], list[Fraction](), list[Fraction]()
        while row:
            left.append(row[0])
            right.append(row[-1])
            row = [(a + b) / 2 for a, b in pairwise(row)]
        least = max(least, left[-1])
        for half in (left, right[::-1]):
            heapq.heappush(cells, (-max(half), half))
    return math.sqrt(float(-cells[0][0])) * UP


def blocks_of(kernel: Array, stride: tuple[int, ...], dilation: tuple[int, ...]) -> Array:
    """Taps of the same convolution with stride 1 on an image cut into cells as large as the stride:
    [o, i, h, w] -> [o, i * s_h * s_w, ceil(h / s_h), ceil(w / s_w)], h and w with dilation."""
    full = [d * (size - 1) + 1 for size, d in zip(kernel.shape[2:], dilation, strict=True)]
    cells = [-(-size // s) for size, s in zip(full, stride, strict=True)]
    room = np.zeros((*kernel.shape[:2], cells[0] * stride[0], cells[1] * stride[1]))
    room[:, :, : full[0] : dilation[0], : full[1] : dilation[1]] = kernel
    room = room.reshape(*kernel.shape[:2], cells[0], stride[0], cells[1], stride[1])
    return room.transpose(0, 1, 3, 5, 2, 4).reshape(len(kernel), -1, *cells)


def absolute_norm(blocks: Array) -> float:
    """Upper bound on the norm of a convolution with weights |blocks|: |S(f) x| <= S(0) |x|."""
    taps = blocks.shape[2] * blocks.shape[3]
    return largest_norm(np.abs(blocks).sum(axis=(2, 3))[None]) * (UP + own(taps))


def torus_norm(blocks: Array, grid: tuple[int, int], shift: int) -> float:
    """Upper bound on the norm of a convolution of one group with outputs [h, w]: by the frequencies
    2 pi (k + shift / 2) / n, half of which do, as the kernel is real."""
    out, inputs, high, wide = blocks.shape
    sizes = (grid[0] + high - 1, grid[1] + wide - 1)
    places = np.indices((high, wide)).reshape(2, -1)
    taps = blocks.reshape(out * inputs, -1).T
    # Every entry is off by at most this share of the sum of its magnitudes over the taps.
    share = 2.0 * (ANGLE_ERROR + own(len(taps)))
    error = share * math.sqrt(len(taps)) * float(euclidean(taps[None])[0])
    half = (sizes[1] + 1) // 2 if shift else sizes[1] // 2 + 1
    result, step = 0.0, max(1, TOGETHER // (out * inputs))
    for start in range(0, sizes[0] * half, step):
        flat = np.arange(start, min(start + step, sizes[0] * half))
        # Turns modulo 1, from whole numbers: an angle is off by a few roundings of 4 pi.
        turns = [
            ((2 * k + shift)[:, None] * q[None] % (2 * n)) / (2 * n)
            for k, q, n in zip((flat // half, flat % half), places, sizes, strict=True)
        ]
        angle = 2.0 * np.pi * (turns[0] + turns[1])
        symbols = (np.cos(angle) @ taps) + 1j * (np.sin(angle) @ taps)
        result = max(result, largest_norm(symbols.reshape(-1, out, inputs)))
    return (result + error) * UP
