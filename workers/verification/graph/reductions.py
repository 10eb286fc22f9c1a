"""Sums and means over whole axes, and numbers less their mean, as affine maps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.graph.affine import Affine
from workers.verification.numerics import MANY, raised

__all__ = ["Centering", "Reduction"]


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
