"""Linear limits on the outputs as rows that the bounds prove positive, in place of logits.

A row is c . y - limit over the DEPLOYED float32 outputs y, in real arithmetic. Class 0 of the new
head is the number 0 and class k is limit_k - c_k . y, so that the margins of label 0 are the rows.
Composed with the last dense map, W z + b with its roundings, the weights are C W, while the
deployed evaluation multiplies |z| with |C| |W| (``Head.magnitude``): that is what its roundings and
overflows are counted by. One more rounding step pays for C and C W in float64.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from workers.verification.graph.compiled_network import CompiledNetwork, Head
from workers.verification.numerics import MANY, raised
from workers.verification.properties.lowering import LinearLimit

__all__ = ["Rows", "rows_of", "with_rows"]

#: Up to here every integer is a float64.
EXACT = 2**53
#: Factors of one row are at most so many times its smallest one, limits at most so large: beyond
#: that float32 outputs cannot decide anything.
LARGEST = 2**200


@dataclass(frozen=True)
class Rows:
    """c_k . y - limits_k, k = 1 ... m: the factors c [m, outputs] float64, at least 1 where not 0;
    exact: they are the stated ones times a positive number, else rounded to nearest.

    limits: exact, times the same number.
    """

    factors: Tensor
    limits: tuple[Fraction, ...]
    exact: bool

    def values(self, outputs: Tensor) -> Tensor:
        """The rows at outputs [..., outputs]: [..., m] float64, as computed."""
        limits = torch.tensor([float(limit) for limit in self.limits], dtype=torch.float64)
        return outputs.to(torch.float64) @ self.factors.T - limits


def rows_of(limits: Sequence[LinearLimit], outputs: int) -> Rows | None:
    """The limits as rows; None where a number is so large that nothing can be proved with it."""
    factors = torch.zeros(len(limits), outputs, dtype=torch.float64)
    bounds, exact = [], True
    for row, limit in enumerate(limits):
        numbers = [factor for _, factor in limit.factors]
        scale = _to_integers(numbers)
        if scale is None:
            # Rounded to nearest; the smallest factor becomes 1.
            scale, exact = 1 / min(map(abs, numbers)), False
        scaled = [factor * scale for factor in numbers]
        if max(*map(abs, scaled), abs(limit.limit * scale)) > LARGEST:
            return None
        for (place, _), factor in zip(limit.factors, scaled, strict=True):
            factors[row, place] = float(factor)
        bounds.append(limit.limit * scale)
    return Rows(factors, tuple(bounds), exact)


def _spread(head: Head, size: Tensor) -> Tensor:
    """size [n, classes] times the head's own |weight|, [n, features]."""
    return size if head.dense is None else size @ head.dense.abs()


def _to_integers(numbers: Sequence[Fraction]) -> Fraction | None:
    """A positive number that makes integers of these, none of them 0; None where one of them would
    be beyond ``EXACT``."""
    ratios = [number / numbers[0] for number in numbers]
    common = 1
    for ratio in ratios:
        common = math.lcm(common, ratio.denominator)
        if common > EXACT or abs(ratio) * common > EXACT:
            return None
    largest = max(abs(ratio) for ratio in ratios) * common
    return None if largest > EXACT else abs(common / numbers[0])


def with_rows(compiled: CompiledNetwork, rows: Rows) -> CompiledNetwork:
    """The network with the rows in place of its logits: bounds of label 0 are bounds of them."""
    head, factors = compiled.head, rows.factors
    size = factors.abs()
    # Exact, then rounded down in the margin's sense: limit - c . b is class k, from which
    # nothing may be missing.
    stated = zip(factors, rows.limits, strict=True)
    bias = [_not_below(limit - _product(row, head.bias)) for row, limit in stated]
    given = torch.tensor([0.0, *bias], dtype=torch.float64)
    magnitude = raised(size @ head.bias_magnitude, MANY)
    nothing = torch.zeros(1, dtype=torch.float64)
    held = torch.cat([nothing, magnitude])
    direct = not head.terms
    lost = float(raised(size.sum(1).amax(), MANY)) * head.floor
    new = Head(
        dense=_below_zero(-head.combined(factors)),
        bias=given,
        bias_magnitude=torch.maximum(held, raised(given.abs(), 1)),
        terms=0.0 if direct and rows.exact else head.terms + 1.0,
        inner=replace(head.inner, lost=0.0 if direct else lost),
        magnitude=_below_zero(raised(_spread(head, size), MANY)),
    )
    safe = compiled.float32_safe and new.float32_safe()
    # What is kept by the network's digest is not about these rows, in files or in this process.
    return replace(
        compiled,
        head=new,
        float32_safe=safe,
        digest=_digest(compiled.digest, rows),
        cache_dir=None,
    )


def _digest(network: str, rows: Rows) -> str:
    """Of the network with these rows at its end."""
    found = hashlib.sha256(f"{network} {rows.exact} {rows.limits}".encode())
    found.update(repr(rows.factors.tolist()).encode())
    return "sha256:" + found.hexdigest()


def _below_zero(rows: Tensor) -> Tensor:
    """Class 0, which is 0, in front of the rows."""
    return torch.cat([rows.new_zeros(1, rows.shape[1]), rows])


def _product(row: Tensor, bias: Tensor) -> Fraction:
    pairs = zip(row.tolist(), bias.tolist(), strict=True)
    return sum((Fraction(c) * Fraction(b) for c, b in pairs if c), Fraction(0))


def _not_below(value: Fraction) -> float:
    nearest = float(value)
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)
