"""What is free in a row of the chained quadratic bound: how it starts, and how it is kept.

Any numbers are valid (``quadratic_pass``); these begin as CROWN's slopes and as SDP-CROWN's shares
of the ball, and are climbed from there by ``bounds.crown_ball``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.verification.backward.input_ball import InputBall
from workers.verification.backward.linear_form import LinearForm
from workers.verification.backward.quadratic_pass import QuadraticPass
from workers.verification.numerics import nonzero

__all__ = ["AT_INPUT", "BOX_GRID", "GRID", "Multipliers", "Start", "best_column"]

#: The key of what is at the input, and the first logarithm of the excess there.
AT_INPUT, EXCESS = 0, -1.0
#: Logarithms of the multipliers that are tried first, as shares of |g| / radius; and none at all.
GRID = (-math.inf, -6.0, -4.0, -2.5, -1.0, 0.0)
#: The same for boxes of intermediate values, of which there are thousands.
BOX_GRID = (-math.inf, -3.0, -1.0)

Change = Callable[[Tensor], Tensor]


def best_column(bounds: Tensor) -> tuple[Tensor, Tensor]:
    """The best column [rows] of bounds [rows, columns], and which it is."""
    best = bounds.nan_to_num(-torch.inf, torch.inf, -torch.inf).max(1)
    return best.values, best.indices


class Start:
    """CROWN's slopes, and multipliers in the proportions of a grid; keeps what it chose."""

    def __init__(self, quadratic: QuadraticPass, grid: tuple[float, ...] = GRID) -> None:
        self.quadratic, self.grid = quadratic, grid
        self.factors: dict[int, Tensor] = {}
        self.units: dict[int, Tensor] = {}
        self.scales: dict[int, Tensor] = {}

    def __call__(self, index: int, rows: LinearForm) -> tuple[Tensor, Tensor]:
        backward = self.quadratic.backward
        lines = backward.relaxation(index)
        given = rows.coefficients
        factors = torch.where(
            given >= 0, rows.pick(lines.lower_slope), rows.pick(lines.upper_slope)
        )
        slopes = factors * given
        length = torch.linalg.vector_norm(slopes.flatten(1), dim=1)
        (source,) = backward.compiled.steps[index].sources
        radius = rows.of_samples(self.quadratic.radius(source)).to(given.dtype)
        scales = (length / nonzero(radius)).clamp_max(1e30)
        self.factors[index] = factors
        self.units[index] = length / math.sqrt(given[0].numel())
        self.scales[index] = scales
        return slopes, scales[:, None] * torch.tensor(self.grid).exp().to(scales)


@dataclass
class Multipliers:
    """What is free in each row: g = factor c + shift unit and own = exp(log) scale, by step.

    factors, shifts [rows, *form]; logs, units, scales [rows]; excess [rows]: logarithm of the
    excess of the exact term at the input, under the key ``AT_INPUT``. Any numbers are valid.
    """

    factors: dict[int, Tensor]
    shifts: dict[int, Tensor]
    logs: dict[int, Tensor]
    units: dict[int, Tensor]
    scales: dict[int, Tensor]
    excess: dict[int, Tensor]

    @classmethod
    def after(cls, start: Start, column: Tensor) -> Multipliers:
        """As the start left them, each row with its own column of the grid."""
        # The least that is tried: from nothing at all a logarithm cannot move.
        first = torch.tensor(GRID).clamp_min(-8.0)[column.cpu()].to(column.device)
        return cls(
            dict(start.factors),
            {index: torch.zeros_like(held) for index, held in start.factors.items()},
            {index: first.to(held) for index, held in start.scales.items()},
            start.units,
            start.scales,
            {AT_INPUT: torch.full((len(column),), EXCESS, device=column.device)},
        )

    def __call__(self, index: int, rows: LinearForm) -> tuple[Tensor, Tensor]:
        given = rows.coefficients
        unit = self.units[index].reshape(-1, *([1] * (given.dim() - 1)))
        slopes = self.factors[index] * given + self.shifts[index] * unit
        own = self.logs[index].exp() * self.scales[index]
        return slopes, own[:, None]

    def free(self) -> list[dict[int, Tensor]]:
        """What the optimiser moves."""
        return [self.factors, self.shifts, self.logs, self.excess]

    def end(self, steps: int) -> InputBall | None:
        """The exact term at the input, by so many steps (0: without it)."""
        return InputBall(self.excess[AT_INPUT].exp(), steps) if steps else None

    def mapped(self, change: Change) -> Multipliers:
        """With every tensor changed."""
        return Multipliers(*({i: change(x) for i, x in part.items()} for part in self._parts()))

    def some(self, rows: Tensor) -> Multipliers:
        """Those of these rows: positions, or a mask."""
        return self.mapped(lambda held: held[rows])

    def put(self, rows: Tensor, part: Multipliers) -> None:
        """Write those of ``part`` into these rows, in place."""
        for own, new in zip(self._parts(), part._parts(), strict=True):
            for index, held in own.items():
                held[rows] = new[index].to(held.dtype)

    def followed_by(self, other: Multipliers) -> Multipliers:
        """Those of both, of the same steps, in this order."""
        both = zip(self._parts(), other._parts(), strict=True)
        return Multipliers(*({i: torch.cat([a[i], b[i]]) for i in a} for a, b in both))

    def numbers(self) -> int:
        """How many numbers are held."""
        return sum(held.numel() for part in self._parts() for held in part.values())

    def _parts(self) -> tuple[dict[int, Tensor], ...]:
        return self.factors, self.shifts, self.logs, self.units, self.scales, self.excess
