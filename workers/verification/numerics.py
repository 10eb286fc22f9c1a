"""Roundings, slacks, norms and sums that every proof uses, each with its error stated once.

THE INVARIANT: no slack underflows before it is multiplied. A slack, reach, width or intercept that
a proof stores has, beside its relative raise, the least normal number eta of its arithmetic added
(``slack``, ``min_normal``), before a weight or a coefficient meets it.

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

from typing import TypeVar

import torch
from torch import Tensor

from workers.verification.rounding import Rounding, gamma, unit_roundoff

__all__ = [
    "FEW",
    "LONGEST_SUM",
    "MANY",
    "ROOM",
    "SECOND_ORDER",
    "SUM_ROUNDINGS",
    "euclidean_norm",
    "floor",
    "lost_in_coefficients",
    "lost_in_norm",
    "lost_in_sums",
    "lowered",
    "magnitude",
    "min_normal",
    "nonzero",
    "per_sample",
    "product_magnitude",
    "quick_total",
    "raised",
    "rough_norm",
    "rounded_down",
    "rounded_up",
    "rounding_error",
    "slack",
    "sum_error",
    "total",
    "up",
]

#: Operations that a raise covers where they are not counted: on single numbers; in sums, norms and
#: recurrences.
FEW, MANY = 2**13, 2**23
#: Numbers in the sums that make a constant of a backward pass, at most.
LONGEST_SUM = 2**21
#: Of an error bound, for computing it with a few operations of any arithmetic: one in a thousand.
SECOND_ORDER = 1.001
#: The same where more is done with it before it is subtracted: one in a hundred.
ROOM = 1.01

Number = TypeVar("Number", float, Tensor)

#: Numbers whose squares are summed in float32 before float64 takes over.
STRETCH = 256
#: Roundings that ``quick_total`` may make of each number.
SUM_ROUNDINGS = 64


def up(operations: float = FEW, dtype: torch.dtype = torch.float64) -> float:
    """1 + 2 gamma_(k+1): a number >= 0 that took k operations, times this, is not below the exact.

    Operations: sums and products of numbers >= 0, quotients and roots, each off by a factor 1 + d
    with |d| <= u. The exact value is at most (1 - u)^-k <= 1 + 2 k u times the computed one, and
    multiplying by this factor may lose one u more: (1 + 2 (k + 1) u) (1 - u) >= 1 + 2 k u as long
    as (k + 1) u <= 1/2. Infinite beyond that.
    """
    return 1.0 + 2.0 * gamma(operations + 1.0, unit_roundoff(dtype))


def raised(value: Number, operations: float = FEW, dtype: torch.dtype = torch.float64) -> Number:
    """Upper bound on a number >= 0 that was computed with so many operations in ``dtype``."""
    return value * up(operations, dtype)


def lowered(value: Number, operations: float = FEW) -> Number:
    """Lower bound on a number >= 0 that was computed with so many operations in float64.

    2 - ``up``: (1 + u)^(k+1) (1 - 2 (k + 1) u) < 1. Below 0 it is not a bound, but stays below 0.
    """
    return value * (2.0 - up(operations))


def nonzero(value: Number) -> Number:
    """A number >= 0 as a divisor: what is (nearly) 0 becomes 1e-300, in float32 1e-30.

    A quotient by it is then of no use, but a number; the caller decides what it means.
    """
    if isinstance(value, Tensor):
        return value.clamp_min(1e-300 if value.dtype == torch.float64 else 1e-30)
    return max(value, 1e-300)


def rounding_error(size: Tensor, share: float = 1.0, *, terms: float = 0.0) -> Tensor:
    """At least share * size: what rounding may change in sums of the magnitude ``size`` >= 0.

    terms: rounding steps with which size itself was computed, in its dtype. ``SECOND_ORDER`` covers
    some thousands of them in float32; more are added.
    """
    counted = 1.0 + 2.0 * gamma(terms, unit_roundoff(size.dtype)) + (SECOND_ORDER - 1.0) / 2.0
    return size * (share * max(SECOND_ORDER, counted))


def sum_error(count: int) -> float:
    """By how much a float64 sum of ``count`` products may be off, relative to their magnitudes.

    gamma_n, n at least 2^15, for sums and dot products in any order.
    """
    return gamma(max(count, 2**15), unit_roundoff(torch.float64))


def min_normal(dtype: torch.dtype) -> float:
    """eta: 2^-126 for float32, 2^-1022 for float64."""
    return torch.finfo(dtype).tiny


def floor(dtype: torch.dtype, rounding: Rounding) -> float:
    """What every stored slack has added: eta, or 0 where rounding is ignored."""
    return min_normal(dtype) if rounding.is_sound else 0.0


def slack(size: Tensor, share: float, rounding: Rounding) -> Tensor:
    """share * size + eta for size >= 0: a slack that may be multiplied by anything afterwards.

    share must leave room for two more roundings (of the product and of the sum).
    """
    return size * share + floor(size.dtype, rounding)


def lost_in_sums(dtype: torch.dtype) -> float:
    """64 eta: at least what underflow takes from a sum of up to 2^29 products, [same units]."""
    return 64.0 * min_normal(dtype)


def lost_in_coefficients(dtype: torch.dtype) -> float:
    """2^16 eta: at least what underflow takes from one coefficient in one step of a backward pass.

    A coefficient is a sum of up to 2^39 products, each of which loses at most u eta <= 2^-24 eta.
    """
    return 2.0**16 * min_normal(dtype)


def lost_in_norm(count: int, dtype: torch.dtype) -> float:
    """At least what a computed Euclidean norm of ``count`` numbers lacks by lost squares."""
    return 2.0 * float(count * min_normal(dtype)) ** 0.5


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
    above = raised(values, 3, like.dtype)
    return rounded_up(above, like.dtype).reshape(-1, *([1] * (like.dim() - 1)))


def rough_norm(x: Tensor) -> Tensor:
    """Upper bound on the Euclidean norm of each row, [batch] float64, where 1 % does not matter."""
    norm = torch.linalg.vector_norm(x.flatten(1), dim=1).to(torch.float64)
    size = x.shape[1:].numel()
    return norm * (1.0 + (size + 8) * unit_roundoff(x.dtype)) + lost_in_norm(size, x.dtype)


def euclidean_norm(x: Tensor) -> Tensor:
    """Upper bound on the Euclidean norm of each row, [batch] float64.

    In float32, stretches of 256 numbers are summed in float32 and these sums in float64.
    """
    flat = x.flatten(1)
    size = flat.shape[1]
    if flat.dtype == torch.float64:
        norm = torch.linalg.vector_norm(flat, dim=1)
        return norm * (1.0 + (size + 8) * unit_roundoff(flat.dtype)) + lost_in_norm(
            size, flat.dtype
        )
    whole = size // STRETCH * STRETCH
    parts = torch.linalg.vector_norm(flat[:, :whole].unflatten(1, (-1, STRETCH)), dim=2)
    square = parts.to(torch.float64).square().sum(1)
    if whole < size:
        square = square + torch.linalg.vector_norm(flat[:, whole:], dim=1).double().square()
    return square.sqrt() * (1.0 + (STRETCH + 8) * unit_roundoff(flat.dtype)) + lost_in_norm(
        size, flat.dtype
    )


def magnitude(x: Tensor) -> Tensor:
    """Sum of the magnitudes over everything but rows, float64, rounded up."""
    flat = x.flatten(1)
    result = flat.abs().sum(1).to(torch.float64)
    return raised(result, flat.shape[1], x.dtype)


def product_magnitude(x: Tensor, weights: Tensor) -> Tensor:
    """``magnitude`` of x * weights, in the memory of the product where no gradient needs it."""
    product = x * weights
    product = product.abs() if product.requires_grad else product.abs_()
    result = product.flatten(1).sum(1).to(torch.float64)
    return raised(result, product[0].numel(), x.dtype)


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
