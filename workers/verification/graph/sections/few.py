"""Linear maps of which each number of the result is a sum of a few of the input's, with factors.

Slices that are scaled, added and joined again are such maps, on values of any shape; written out as
a matrix they would be far too large. A fold of pairs (``models.onnx.operators.curved.folds``) is a
convex potential of two of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.numerics import MANY, raised, sum_error

__all__ = ["Few", "added", "contraction", "identity", "moved"]

Shape = tuple[int, ...]
#: Terms of one number, and terms in all, at most.
TERMS, NUMBERS = 4, 2**23
#: What remains of V beside -W^T L is only looked at up to this norm (times that of W).
LARGEST_REST = 0.1


@dataclass(frozen=True)
class Few:
    """places: int64 [numbers, terms], 1 + the place among the input's numbers, 0 for none; factors:
    float64 alike, each a product of at most ``products`` exact ones; 0 where there is no place."""

    places: Tensor
    factors: Tensor
    in_shape: Shape
    products: int = 0

    def norm(self, clock: Clock = UNLIMITED) -> float:
        """Upper bound on the operator norm: the root of the largest row sum of |A| |A|^T."""
        return raised(_length(*self._entries(), self.factors.shape[0], self.columns), MANY)

    @property
    def columns(self) -> int:
        """How many numbers the input has."""
        return math.prod(self.in_shape)

    def _entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and factor of every term, those of one place apart; factors rounded up."""
        rows = torch.arange(self.places.shape[0])[:, None].expand(self.places.shape)
        kept = self.places > 0
        # Each factor is off by a share of itself, which the norms of absolute values bear.
        factors = raised(self.factors[kept].abs(), self.products + 1)
        return rows[kept], self.places[kept] - 1, factors

    def scaled(self, rows: Tensor) -> Few:
        """The map with every number of its result times a number [numbers]."""
        return replace(self, factors=self.factors * rows[:, None], products=self.products + 1)

    def merged(self, other: Few) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows, columns, and factors here and in the transpose of ``other``, entry by entry."""
        keys = []
        for form, turned in ((self, False), (other, True)):
            rows = torch.arange(form.places.shape[0])[:, None].expand(form.places.shape)
            kept = form.places > 0
            row, column = rows[kept], form.places[kept] - 1
            row, column = (column, row) if turned else (row, column)
            keys.append((row * self.columns + column, form.factors[kept]))
        (mine, factors), (theirs, others) = keys
        found, at = torch.unique(torch.cat([mine, theirs]), return_inverse=True)
        zeros = torch.zeros(len(found), dtype=torch.float64)
        first = zeros.index_add(0, at[: len(mine)], factors)
        second = zeros.index_add(0, at[len(mine) :], others)
        return found // self.columns, found % self.columns, first, second


def _length(rows: Tensor, columns: Tensor, sizes: Tensor, height: int, width: int) -> float:
    """Root of the largest row sum of |A| |A|^T, of entries ``sizes`` >= 0 of A [height, width]."""
    if not len(sizes):
        return 0.0
    sums = torch.zeros(width, dtype=torch.float64).index_add_(0, columns, sizes)
    total = torch.zeros(height, dtype=torch.float64).index_add_(0, rows, sizes * sums[columns])
    return math.sqrt(float(total.max()))


def identity(shape: Shape) -> Few | None:
    """The input itself; None where it is too large."""
    count = math.prod(shape)
    if count > NUMBERS:
        return None
    ones = torch.ones(count, 1, dtype=torch.float64)
    return Few(torch.arange(1, count + 1)[:, None], ones, shape)


def added(first: Few, second: Few) -> Few | None:
    """The sum of two maps of one input; None where it has too many terms."""
    places = torch.cat([first.places, second.places], dim=1)
    if places.shape[1] > TERMS or places.numel() > NUMBERS:
        return None
    factors = torch.cat([first.factors, second.factors], dim=1)
    return replace(
        first, places=places, factors=factors, products=max(first.products, second.products)
    )


def moved(parts: Sequence[Few], places: Tensor) -> Few | None:
    """What moves make of values: ``places``, 1 + the place among all their numbers in a row."""
    terms = max(part.places.shape[1] for part in parts)
    if places.numel() * terms > NUMBERS:
        return None
    rows = [torch.zeros(1, terms, dtype=torch.int64)]
    factors = [torch.zeros(1, terms, dtype=torch.float64)]
    for part in parts:
        more = (0, terms - part.places.shape[1])
        rows.append(torch.nn.functional.pad(part.places, more))
        factors.append(torch.nn.functional.pad(part.factors, more))
    at = places.flatten()
    return Few(
        torch.cat(rows)[at],
        torch.cat(factors)[at],
        parts[0].in_shape,
        max(part.products for part in parts),
    )


def contraction(inner: Few, outer: Few) -> float:
    """|I + V D W| over all D, 0 <= D <= I, for W = ``inner`` and V = ``outer``, as in
    ``residuals``: at most max(1, |G|^2 - 1) + |F| |W|; infinite where V is far from -W^T L."""
    height, width = inner.places.shape[0], inner.columns
    if (outer.columns, outer.places.shape[0]) != (height, width):
        return math.inf
    rows, columns, first, second = inner.merged(outer)
    squares, shares = (
        torch.zeros(height, dtype=torch.float64).index_add_(0, rows, numbers)
        for numbers in (first.square(), -(first * second))
    )
    shares = (shares / torch.where(squares > 0.0, squares, torch.ones_like(squares))).clamp_min(0.0)
    # Sums of a few factors, each a product of a few exact ones, and one product and sum more.
    lost = sum_error(2 * TERMS + inner.products + outer.products + 2)
    bent = shares[rows] * first
    size = raised((second + bent).abs() + lost * (second.abs() + bent.abs()))
    rest = raised(_length(rows, columns, size, height, width), MANY)
    rest = raised(rest * raised(_length(rows, columns, first.abs() * (1.0 + lost), height, width)))
    if not rest <= LARGEST_REST:
        return math.inf
    stretched = raised(shares.sqrt()[rows] * first.abs() * (1.0 + lost))
    stretch = raised(_length(rows, columns, stretched, height, width), MANY)
    return raised(max(1.0, raised(stretch * stretch) - 1.0) + raised(rest, MANY))
