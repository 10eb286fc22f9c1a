"""Roundings, slacks, norms and sums that every proof uses, each with its error stated once.

THE INVARIANT: no slack underflows before it is multiplied. A slack, reach, width or intercept that
a proof stores has, beside its relative raise, the least normal number eta of its arithmetic added
(``slack``, ``least``), before a weight or a coefficient meets it.

Why that is enough, for binary arithmetic with unit roundoff u and gradual underflow:
* Sums and differences have no underflow error: fl(a + b) = (a + b)(1 + d), |d| <= u, since a sum
  below eta is a multiple of the least denormal number and exact.
* fl(a b) = a b (1 + d) + e and fl(a / b) likewise, with |e| <= u eta, half of the least denormal.
So an expression of sums and k products is off by a relative part, which the raise covers, and by at
most k u eta; the added eta covers 1 / u = 2^24 (2^53) products and is itself a normal number: what
is stored is at least the exact value and normal, hence every later (1 + d) is true of it. Products
of it with weights may underflow again, by u eta each: n of them in one sum are below the floor
``rounding.UNDERFLOW`` (64 eta) times n that each affine step adds to its outputs, and that
``BackwardPass`` takes from its constants. A number that is converted to a narrower arithmetic is
rounded outward (``rounded_up``, ``per_sample``), a denormal result included.

Squares are lost below eta: a computed norm of n numbers lacks at most sqrt(n eta) beside its
relative error (``lost_in_norm``). Overflow gives inf or NaN, never a finite number that is too
small; both fail every final comparison, so nothing is concluded from them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.verification.rounding import Rounding, unit_roundoff

__all__ = [
    "SUM_ROUNDINGS",
    "euclidean_norm",
    "floor",
    "least",
    "lost_in_norm",
    "lost_in_sums",
    "magnitude",
    "per_sample",
    "quick_total",
    "rough_norm",
    "rounded_down",
    "rounded_up",
    "slack",
    "total",
]

#: Numbers whose squares are summed in float32 before float64 takes over.
STRETCH = 256
#: Roundings that ``quick_total`` may make of each number.
SUM_ROUNDINGS = 64


def least(dtype: torch.dtype) -> float:
    """eta: 2^-126 for float32, 2^-1022 for float64."""
    return torch.finfo(dtype).tiny


def floor(dtype: torch.dtype, rounding: Rounding) -> float:
    """What every stored slack has added: eta, or 0 where rounding is ignored."""
    return least(dtype) if rounding.is_sound else 0.0


def slack(size: Tensor, share: float, rounding: Rounding) -> Tensor:
    """share * size + eta for size >= 0: a slack that may be multiplied by anything afterwards.

    share must leave room for two more roundings (of the product and of the sum).
    """
    return size * share + floor(size.dtype, rounding)


def lost_in_sums(dtype: torch.dtype) -> float:
    """64 eta: at least what underflow takes from a sum of up to 2^29 products, [same units]."""
    return 64.0 * least(dtype)


def lost_in_norm(count: int, dtype: torch.dtype) -> float:
    """At least what a computed Euclidean norm of ``count`` numbers lacks by lost squares."""
    return 2.0 * float(count * least(dtype)) ** 0.5


def rounded_down(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (float64) in ``dtype``, not above x."""
    if dtype == torch.float64:
        return x
    return torch.nextafter(x.to(dtype), torch.tensor(-torch.inf, dtype=dtype, device=x.device))


def rounded_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (float64) in ``dtype``, not below x."""
    return -rounded_down(-x, dtype)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[batch] float64 -> [batch, 1, ...] in ``like``'s dtype, at least 8 roundings above."""
    raised = values * (1.0 + 8 * unit_roundoff(like.dtype))
    return rounded_up(raised, like.dtype).reshape(-1, *([1] * (like.dim() - 1)))


def rough_norm(x: Tensor) -> Tensor:
    """Upper bound on the Euclidean norm of each row, [batch] float64, where 1 % does not matter."""
    norm = torch.linalg.vector_norm(x.flatten(1), dim=1).to(torch.float64)
    size = x[0].numel()
    return norm * (1.0 + (size + 8) * unit_roundoff(x.dtype)) + lost_in_norm(size, x.dtype)


def euclidean_norm(x: Tensor) -> Tensor:
    """Upper bound on the Euclidean norm of each row, [batch] float64.

    In float32, stretches of 256 numbers are summed in float32 and these sums in float64.
    """
    flat = x.flatten(1)
    size = flat.shape[1]
    if flat.dtype == torch.float64:
        norm = torch.linalg.vector_norm(flat, dim=1)
        return norm * (1.0 + (size + 8) * 2.0**-53) + lost_in_norm(size, flat.dtype)
    whole = size // STRETCH * STRETCH
    parts = torch.linalg.vector_norm(flat[:, :whole].unflatten(1, (-1, STRETCH)), dim=2)
    square = parts.to(torch.float64).square().sum(1)
    if whole < size:
        square = square + torch.linalg.vector_norm(flat[:, whole:], dim=1).double().square()
    return square.sqrt() * (1.0 + (STRETCH + 8) * 2.0**-24) + lost_in_norm(size, flat.dtype)


def magnitude(x: Tensor) -> Tensor:
    """Sum of the magnitudes over everything but rows, float64, rounded up."""
    flat = x.flatten(1)
    result = flat.abs().sum(1).to(torch.float64)
    return result * (1.0 + 2.0 * flat.shape[1] * unit_roundoff(x.dtype))


def total(x: Tensor) -> Tensor:
    """Sum over everything but rows, accumulated in float64."""
    return x.flatten(1).sum(1, dtype=torch.float64)


def quick_total(x: Tensor) -> Tensor:
    """The same, stretches of 64 in x's own dtype: off by at most ``SUM_ROUNDINGS`` roundings of
    the sum of the magnitudes."""
    flat = x.flatten(1)
    whole = flat.shape[1] // 64 * 64
    if flat.dtype == torch.float64 or not whole:
        return flat.sum(1, dtype=torch.float64)
    result = flat[:, :whole].unflatten(1, (-1, 64)).sum(2).sum(1, dtype=torch.float64)
    return result + flat[:, whole:].sum(1) if whole < flat.shape[1] else result
