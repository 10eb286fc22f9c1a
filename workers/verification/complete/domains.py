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
    """

    objective: Tensor
    sides: Tensor
    numbers: Tensor
    bound: Tensor

    def __len__(self) -> int:
        return len(self.objective)

    def some(self, chosen: Tensor) -> Domains:
        """These alone: positions, or a mask."""
        return Domains(
            self.objective[chosen], self.sides[chosen], self.numbers[chosen], self.bound[chosen]
        )

    def followed_by(self, other: Domains) -> Domains:
        """Both, in this order."""
        return Domains(
            torch.cat([self.objective, other.objective]),
            torch.cat([self.sides, other.sides]),
            torch.cat([self.numbers, other.numbers]),
            torch.cat([self.bound, other.bound]),
        )

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
        sides, numbers = both.sides.clone(), both.numbers.clone()
        sides[rows, twice] = side
        numbers[rows, twice] = 0.0
        return Domains(both.objective, sides, numbers, both.bound)
