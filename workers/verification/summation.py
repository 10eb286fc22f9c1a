"""What a sum of n numbers may round, in ANY order, as a share of their Euclidean norm.

A deployed output is a sum of leaves t_i (products, a bias) over some binary tree that nobody knows,
every node of it off by a factor 1 + d, |d| <= u. To first order its error is
    sum_i D_i t_i,    D_i = the sum of d over the nodes above leaf i.
The bound that everybody takes, n u sum |t_i|, lets every leaf have n nodes above it. But no tree
does that: with D the mean of the D_i,
    |sum_i D_i t_i| <= |D_i - D|_2 |t|_2 + |D| |sum_i t_i|,
and for every tree of n leaves and every d (in units of u)
    (1) |D| <= (n + 1) / 2,
    (2) sum_i (D_i - D)^2 <= (n^3 + 6 n^2) / 12,
    (3) sum_i D_i^2 <= n^3 / 3 + n^2 / 2.
So n^1.5 |t|_2 / 3.46 stands for n |t|_1, and over all outputs of a map W the norms |t|_2 together
are at most max_j |W e_j|_2 |x|_2: no norm of the entrywise absolute value is needed, which for an
orthogonal matrix is sqrt(2 n / pi). The sum of the t_i is the output itself.

Proof. (1): a tree of n leaves has at most (n - 1)(n + 2) / 2 nodes above them in all (one leaf
after another), so |D| <= m(n) = (n + 1) / 2 - 1 / n. (2), (3) by induction: the root has trees of a
and b = n - a leaves under it, and its own d moves all D_i alike. Within the two the sum of squares
around their own means is at most V(a) + V(b); their means lie at most m(a) + m(b) = n / 2 + 1 -
n / (a b) <= q = n / 2 + 1 - 4 / n apart, which adds a b / n times the square. q^2 / n <= n / 4 + 1
for n >= 2, and V(n) - V(a) - V(b) = a b (n / 4 + 1) for V(n) = (n^3 + 6 n^2) / 12. For (3), with
U(n) = n^3 / 3 + n^2 / 2 and the depths themselves: U(a) + U(b) + 2 a m(a) + 2 b m(b) + n <= U(n)
comes to a b (n + 3) >= n^2 + 2 n - 4, which a b >= n - 1 gives.

Nothing less holds in any order: leaves whose sizes grow evenly, added from the least up, reach
(2) to 1 - 3 / n. Of few leaves (2) gives much away, and the recursion that proves it is computed:
V(n) = max over a of V(a) + V(b) + a b / n (m(a) + m(b))^2.

Trees under trees, over all outputs of a map W. A level has trees of n leaves, K of them for each
output; its leaves are the t_i, or the sums S of the level below. Where any two trees of an output
read inputs of their own, the same ones for every output (groups of channels), the sums of a level,
over all its trees and all outputs, have the norm sum_g |W P_g x|^2 <= |W|^2 |x|^2, P_g x the inputs
of group g. To first order a level errs by sum_j D_j S_j in each tree: at most |D_j - D|_2 |S|_2 +
|D| |sum_j S_j|, and an output by the sum of K such errors, sqrt(K) times their norm at most. So all
outputs together are off by
    u |x| sum over the levels of sqrt(K) (sqrt(V(n)) s + m(n) |W|),
s the largest column of W for the first level, |W| for all others: leaves under the trees of a level
count once, not each by itself.

Trees of few leaves, (1) and (2) together. No tree has both at once, so they are not added up. With
S the sum of a tree's leaves, v = sum_j (D_j - D)^2 and any p > 0, by Cauchy and Schwarz twice,
    |sum_j D_j t_j| <= v^(1/2) (|t|^2 - S^2 / n)^(1/2) + |D| |S|,
    its square <= (v / p + D^2) (p |t|^2 + (1 - p / n) S^2),
so that the squares of the errors of any number of trees sum up to at most Q(p) (p A + max(0, 1 - p
/ n) B), A the sum of all |t|^2, B of all S^2, and Q(p) the largest v / p + D^2 of any tree and any
d. That is convex in the d, so largest where each is 1 or -1; there all D_j are integers. For every
n and every M the largest U_n(M) of sum_j D_j^2 with sum_j D_j = M is computed in integers, over all
trees: U_n(M + d n) = max over a, b = n - a, M = M_a + M_b of U_a(M_a) + U_b(M_b) + 2 d M + n. The
leaves themselves begin with D = 0, or, where they are products, with their own d.

One output whose leaves are known better (``Leaves``), by the nodes instead: its error is at most u
sum |v| over the n - 1 nodes' own sums v. With P at least the sum of the leaves above 0 and of those
below, T at least either's norm and S the sum of all, a node of k leaves has |v| <= h(k) = min(P,
k^(1/2) T), and |v| <= |S| + h(n - k), as the others make S of it. So a node with |v| >= c has at
least (c / T)^2 =: a leaves and at most n - b, b := ((c - |S|)+ / T)^2 <= a. Nodes of a to n - b
leaves are n + 2 - a - b at most: those of a leaves or more under one node of m are m - a + 1 (by
induction), and the topmost in question are one, of n - b at most, or more, which share n. Hence
    sum |v| <= integral over c from 0 to P of (n + 2 - a - b)+
             = (n + 2) c - (c^3 + (c - |S|)+^3) / (3 T^2)
at c = P, or where n + 2 = a + b, if that is less: c = (s + (2 (n + 2) T^2 - s^2)^(1/2)) / 2 with s
the lesser of |S| and (n + 2)^(1/2) T. The integral grows with n, P, T and |S|, so that upper bounds
on them may stand for them, each by itself. A leaf that is 0 in every input counts for none.

Further factors (of a product, of a scale before the sum) move a leaf's D_i by at most 1 each: they
cost their number times the root of the leaves times |t|. Those behind the sum (a scale or a shift
of the output) move all D_i of an output alike: they are in the mean and not in the spread, and cost
c |sum t_i|, over all outputs c |W| |x|. A leaf that is 0 is added without any rounding and counts
for none. What is beyond first order is at most (N u)^2 / (1 - N u) sum |t_i| for N factors on one
leaf's way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.verification.numerics import nonzero, raised
from workers.verification.rounding import gamma

__all__ = ["FUSED", "Leaves", "Summation", "beyond_first_order"]

#: Leaves up to which V(n) is computed as its proof has it.
FEW = 64
#: Leaves up to which Q(p) is computed, and the p that are tried, over n.
JOINT = 32
WEIGHTS = np.geomspace(2.0**-8, 2.0**4, 97)
#: A leaf whose weight is a product that the verifier rounded to float64, in units of float32's u.
FUSED = 2.0**-28


@dataclass(frozen=True)
class Summation:
    """How one output is added up: trees of at most ``sizes[0]`` leaves, whose sums are the leaves
    of trees of ``sizes[1]``, and so on, each tree in any order. ahead: factors that a leaf meets
    before it is added, each its own (1: a product). behind: those that all leaves meet alike
    afterwards.

    Every bound is in units of u, rounded up.
    """

    sizes: tuple[float, ...]
    ahead: float = 0.0
    behind: float = 0.0

    @property
    def leaves(self) -> float:
        """Leaves in all, at most."""
        return math.prod(self.sizes)

    def factors_beside(self, terms: float) -> float:
        """Of ``terms`` factors on a leaf's way, how many are neither of these trees nor
        ``behind``."""
        return terms - self.behind - self.deepest

    @property
    def deepest(self) -> float:
        """Nodes above one leaf, at most."""
        return sum(size - 1.0 for size in self.sizes)

    def before(self, factors: float) -> Summation:
        """The same with so many more factors behind it."""
        return replace(self, behind=self.behind + factors)

    def after(self, factors: float) -> Summation:
        """The same with so many more factors ahead of every leaf."""
        return replace(self, ahead=self.ahead + factors)

    def spread(self) -> float:
        """sum_i D_i t_i, of the trees alone, is at most this times |t|_2, beside ``mean`` times
        |sum_i t_i|."""
        last = self.sizes[-1]
        centred = math.sqrt(self.leaves / last * _spread_square(last))
        return raised(centred + self._whole(self.sizes[:-1]))

    def mean(self) -> float:
        """See ``spread``."""
        return raised(_mean(self.sizes[-1]) + self.behind)

    def whole(self) -> float:
        """sum_i D_i t_i, of the trees alone, is at most this times |t|_2."""
        return raised(self._whole(self.sizes) + self.behind * math.sqrt(self.leaves))

    def of_map(self, column: float, norm: float) -> float:
        """All outputs of W together are off by at most this for |x| = 1, if trees of one output
        read inputs of their own. column: W's largest column; norm: of W."""
        each = math.sqrt(self.leaves) * column
        together = self.spread() * column + self.mean() * norm + self.ahead * each
        product = self.ahead >= 1.0
        by_levels, trees = self.behind * norm, 1.0
        for level, size in reversed([*enumerate(self.sizes)]):
            first = level == 0
            leaves = column if first else norm
            by_levels += math.sqrt(trees) * _level(size, leaves, norm, products=product and first)
            trees *= size
        by_levels += (self.ahead - product) * each
        return raised(min(together, by_levels))

    def of_output(self, leaves: Leaves) -> Tensor:
        """Each output is off by at most this, [batch, *shape]."""
        alone, shift = leaves.alone, leaves.shift
        shifts = torch.fmin(self.whole() * leaves.shift_norm, self.deepest * shift)
        first = self.spread() * leaves.norm + self.mean() * alone + shifts + self.behind * shift
        if len(self.sizes) == 1:
            first = torch.fmin(first, self._by_nodes(leaves) + self.behind * (alone + shift))
        return first + self.ahead * leaves.total

    def _by_nodes(self, leaves: Leaves) -> Tensor:
        (most,) = self.sizes
        count = torch.full_like(leaves.total, most)
        # With two factors or more ahead of them leaves may hold shifts, and are never 0.
        if leaves.count is not None and self.ahead < 2.0:
            count = leaves.count.clamp_max(most)
        whole = leaves.alone + leaves.shift
        # All in units of T. No node is above (n + 2)^(1/2) of it, whatever is known of S: a shift
        # behind the sums is part of ``whole`` and no leaf.
        norm = nonzero(leaves.side + leaves.shift_norm)
        part = (leaves.total + whole) * 0.5 / norm
        whole = torch.fmin(whole / norm, (count + 2.0).sqrt())
        end = torch.fmin(part, (whole + (2.0 * (count + 2.0) - whole.square()).sqrt()) * 0.5)
        cubes = end.pow(3) + (end - whole).clamp_min(0.0).pow(3)
        return norm * ((count + 2.0) * end - cubes / 3.0)

    def _whole(self, sizes: tuple[float, ...]) -> float:
        # A node of one level stands for all leaves below it, and there are leaves / size of them.
        return sum(math.sqrt(self.leaves / n * (n**3 / 3.0 + n**2 / 2.0)) for n in sizes)


@dataclass(frozen=True)
class Leaves:
    """What is known of the leaves of single outputs, at least, [batch, *shape] each.

    total: the sum of all their sizes. alone: of the sum of those that are products with inputs,
    norm: their Euclidean norm, side: the norm of those above 0 and of those below. shift,
    shift_norm: the sum of the sizes, and the norm, of what does not depend on the input. count: how
    many may not be 0, a shift included; None: all.
    """

    total: Tensor
    alone: Tensor
    norm: Tensor
    side: Tensor
    shift: Tensor
    shift_norm: Tensor
    count: Tensor | None = None


@lru_cache(maxsize=4096)
def _level(size: float, leaves: float, sums: float, *, products: bool) -> float:
    """The root of the sum of the squares of all errors of trees of ``size`` leaves, if the root of
    the sum of the squares of all leaves is at most ``leaves``, of all their sums ``sums``."""
    least = math.sqrt(_spread_square(size)) * leaves + _mean(size) * sums
    least += products * math.sqrt(size) * leaves
    if not (size <= JOINT and size == int(size) and math.isfinite(least)):
        return least
    spread, mean_square = _extremes(int(size), products=products)
    weights = WEIGHTS * size
    # Q(p) for every p.
    largest = (spread[:, None] / weights + mean_square[:, None]).max(0)
    found = largest * (weights * leaves**2 + np.maximum(0.0, 1.0 - WEIGHTS) * sums**2)
    return min(least, raised(math.sqrt(float(found.min()))))


def _mean(leaves: float) -> float:
    """m(n)."""
    return (leaves + 1.0) / 2.0 - 1.0 / leaves


def _spread_square(leaves: float) -> float:
    """V(n)."""
    if leaves <= FEW and leaves == int(leaves):
        return _few_spread_squares()[int(leaves)]
    return (leaves**3 + 6.0 * leaves**2) / 12.0


@cache
def _few_spread_squares() -> tuple[float, ...]:
    """V(0), V(1), ..., V(FEW), each rounded up."""
    found = [0.0, 0.0]
    for n in range(2, FEW + 1):
        apart = ((a, n - a, _mean(a) + _mean(n - a)) for a in range(1, n // 2 + 1))
        found.append(max(found[a] + found[b] + a * b / n * gap * gap for a, b, gap in apart))
        found[-1] = raised(found[-1], 16)
    return tuple(found)


@cache
def _extremes(leaves: int, *, products: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Every D's largest v, and D^2, rounded up."""
    squares = _squares(leaves, products=products)
    reach = len(squares) // 2
    total = np.arange(-reach, reach + 1)
    possible = squares >= 0
    exact, total = squares[possible].astype(np.float64), total[possible].astype(np.float64)
    # The difference of two integers over n, each far below 2^53: n v is exact.
    spread = (exact * leaves - total * total) / leaves
    return raised(1.0) * spread, raised(1.0) * (total / leaves) ** 2


@cache
def _squares(leaves: int, *, products: bool) -> NDArray[np.int64]:
    """U_n(M) for M from -r to r, r the largest possible; -1 where no tree has this M."""
    if leaves == 1:
        return np.array([1, -1, 1]) if products else np.array([0])
    reach = (leaves - 1) * (leaves + 2) // 2 + leaves * products
    best = np.full(2 * reach + 1, -1)
    for part in range(1, leaves // 2 + 1):
        two = [_squares(size, products=products) for size in (part, leaves - part)]
        under = np.full(len(two[0]) + len(two[1]) - 1, -1)
        for place in np.nonzero(two[0] >= 0)[0]:
            here = under[place : place + len(two[1])]
            np.maximum(here, np.where(two[1] >= 0, two[0][place] + two[1], -1), out=here)
        low = len(under) // 2
        total = np.arange(-low, low + 1)
        for sign in (1, -1):
            moved = np.where(under >= 0, under + 2 * sign * total + leaves, -1)
            here = best[reach - low + sign * leaves :][: len(moved)]
            np.maximum(here, moved, out=here)
    return best


def beyond_first_order(terms: float, unit: float) -> float:
    """(1 + u)^N - 1 - N u for N = ``terms`` factors, rounded up; infinite where N u is large."""
    first = gamma(terms, unit)
    return raised(first * terms * unit) if math.isfinite(first) else math.inf
