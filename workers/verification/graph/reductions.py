"""Sums and means over whole axes, and numbers less their mean, as affine maps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.graph.affine import Affine, Norms
from workers.verification.numerics import MANY, raised
from workers.verification.summation import Summation, beyond_first_order

__all__ = ["Centering", "Reduction"]

#: Beside w(n), in units of sqrt(n) |x| (``Centering``).
MORE = 21.0


@dataclass(frozen=True, eq=False)
class Reduction(Affine):
    """y = scale times the sum over ``axes`` (of the batched input), scale > 0.

    Each input enters one output and each output takes n of them: W W^T = n scale^2 I, so that W and
    |W| = W have the norm sqrt(n) scale exactly.
    """

    axes: tuple[int, ...] = field(kw_only=True)
    scale: float = field(kw_only=True)

    @property
    def count(self) -> int:
        """n: how many inputs one output takes."""
        return math.prod(self.in_shape[axis - 1] for axis in self.axes)

    def linear(self, x: Tensor) -> Tensor:
        return x.sum(dim=self.axes).mul_(self.scale).reshape(x.shape[0], *self.out_shape)

    def absolute(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """W^T y: [rows, *out_shape] -> [rows, *in_shape]."""
        kept = (1 if a + 1 in self.axes else n for a, n in enumerate(self.in_shape))
        spread = (y * self.scale).reshape(y.shape[0], *kept)
        return spread.expand(y.shape[0], *self.in_shape).contiguous()

    def weights(self) -> list[Tensor]:
        return [torch.tensor(self.scale, dtype=torch.float64)]

    def row_norms_square(self) -> Tensor:
        square = raised(self.count * self.scale**2, MANY)
        return torch.tensor(square, dtype=torch.float64)

    def largest_column(self) -> float:
        return self.scale

    def spectral(self, clock: Clock = UNLIMITED) -> float:
        return raised(math.sqrt(self.count) * self.scale)

    def absolute_norm(self, clock: Clock = UNLIMITED) -> float:
        return self.spectral(clock)


@dataclass(frozen=True, eq=False)
class Centering(Affine):
    """y = x less its mean over ``axes`` (of the batched input): W = I - J / n on every group of n.

    A projection: symmetric, of norm 1. |W| = (1 - 2 / n) I + J / n has the norm 2 - 2 / n.

    What it rounds, in the Euclidean norm. Let S be sums of some of a group's numbers x, to first
    order and in units of u. n times the mean, by the three ways of ``layers.affine``:
    (a) a sum in any order, 3 factors beside: at most w(n) |x| + 3 sqrt(n) |x|, w(n)^2 = n^3 / 3 +
    n^2 / 2 + n / 6 (``summation``, (3)).
    (b) updated, step k adds |S_k| + 3 |x_k - m_(k-1)|, S_k the first k numbers: the first is one
    number after another in (a), with a node for the first as well, at most w(n) |x|; the second is
    at most 3 sqrt(n) |x| + 3 sum |m_k|, and sum m_k^2 <= 4 |x|^2 (Hardy): 9 sqrt(n) |x| together.
    (c) P parts of equal length L, each by (a) or (b): w(L) sqrt(P) |x| + 9 sqrt(n) |x| for all;
    parts a and b that are joined add |S_ab| + 4 |S_a| + 4 |S_b|. By pairs that is 5 sqrt(n) |x| at
    most on each of log2(P) levels, one after another 5 w(P) sqrt(L) |x| + 4 sqrt(n) |x|.
    Together all are below (w(n) + MORE sqrt(n)) |x|, for joins one after another from L = 5 on. So
    the mean is off by an n-th of that, and all n numbers of a group by sqrt(n) times as much. The
    difference rounds by |y| <= |x|, or by |x| + 3 sqrt(n) |m| + |y| of two products in its place.
    It grows as 0.58 n |x|, where n roundings of every number, on |W| |x|, are 2 n |x|.
    """

    axes: tuple[int, ...] = field(kw_only=True)

    @property
    def count(self) -> int:
        """n: numbers of one group."""
        return math.prod(self.in_shape[axis - 1] for axis in self.axes)

    def linear(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=self.axes, keepdim=True)

    def absolute(self, x: Tensor) -> Tensor:
        return x.mean(dim=self.axes, keepdim=True) + x * (1.0 - 2.0 / self.count)

    def adjoint(self, y: Tensor) -> Tensor:
        """W^T y = W y: [rows, *shape] -> [rows, *shape]."""
        return self.linear(y)

    def weights(self) -> list[Tensor]:
        return [torch.tensor([1.0, 1.0 / self.count], dtype=torch.float64)]

    def row_norms_square(self) -> Tensor:
        square = raised((self.count - 1.0) / self.count, MANY)
        return torch.tensor(square, dtype=torch.float64)

    def largest_column(self) -> float:
        return raised(math.sqrt((self.count - 1.0) / self.count))

    def spectral(self, clock: Clock = UNLIMITED) -> float:
        return 1.0

    def absolute_norm(self, clock: Clock = UNLIMITED) -> float:
        return raised(2.0 - 2.0 / self.count)

    def rounding_share(
        self, norms: Norms, unit: float, terms: float, trees: Summation | None
    ) -> float:
        n = float(self.count)
        first = math.sqrt(n**2 / 3.0 + n / 2.0 + 1.0 / 6.0) + MORE + 5.0
        whole = unit * first + beyond_first_order(terms, unit) * norms.absolute
        return min(super().rounding_share(norms, unit, terms, trees), raised(whole))
