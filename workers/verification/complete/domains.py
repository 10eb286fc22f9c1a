"""Domains: parts of a sample's region, by the side of 0 that some of its units are on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Domains"]


@dataclass
class Domains:
    """A batch of domains, one row each.

    objective [n]: which function is to be proved positive there; sides [n, units] int8: 1 where the
    unit's deployed value before the activation is >= 0, -1 where it is <= 0, 0 where nothing is
    decided; numbers [n, units] float32: of a decided unit its multiplier, >= 0, of every other one
    its lower slope; bound [n] float64: proved lower bound of the objective.

    lower, upper [n, units] float64: of every unit's deployed value before the activation; low, high
    [n, inputs] float64: of the inputs ([n, 0]: the region's own). Both hold every execution of the
    domain whose objective may still be too low (``clipping``).
    """

    objective: Tensor
    sides: Tensor
    numbers: Tensor
    bound: Tensor
    lower: Tensor
    upper: Tensor
    low: Tensor
    high: Tensor

    def __len__(self) -> int:
        return len(self.objective)

    def _fields(self) -> tuple[Tensor, ...]:
        kept = (self.objective, self.sides, self.numbers, self.bound)
        return (*kept, self.lower, self.upper, self.low, self.high)

    def some(self, chosen: Tensor) -> Domains:
        """These alone: positions, or a mask."""
        return Domains(*(field[chosen] for field in self._fields()))

    def put(self, places: Tensor | slice, part: Domains) -> None:
        """Write what is known of some of them now, in place."""
        for own, new in zip(self._fields(), part._fields(), strict=True):
            own[places] = new

    def followed_by(self, other: Domains) -> Domains:
        """Both, in this order."""
        both = zip(self._fields(), other._fields(), strict=True)
        return Domains(*(torch.cat(fields) for fields in both))

    def split(self, units: Tensor) -> Domains:
        """The children of each: its unit of ``units`` [n] on one side of 0, then on the other.

        [2 n]: first all with the upper side. Each begins with its parent's numbers and bound; the
        new multiplier is 0.
        """
        both = self.followed_by(self)
        rows = torch.arange(len(both), device=units.device)
        twice = torch.cat([units, units])
        side = torch.ones(len(both), dtype=torch.int8, device=units.device)
        side[len(self) :] = -1
        both.sides[rows, twice] = side
        both.numbers[rows, twice] = 0.0
        return both
