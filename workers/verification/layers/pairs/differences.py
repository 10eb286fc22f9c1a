"""How layers that sort two values carry a difference between two inputs.

With s = a + b and d = a - b, max(a, b) = (s + |d|) / 2 and min(a, b) = (s - |d|) / 2. Between two
inputs |d| changes by t times as much as d, one t in [-1, 1]: 1 where a is the larger in both, -1
where b is. So with the share (1 + t) / 2 of a and (1 - t) / 2 of b the maximum changes, and the
minimum the other way round; where nothing is known, with half of both, and |d' - d| / 2 at most
beside it. The layers round nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.activations import MaxMin
from models.layers.base import Layer
from models.layers.joins import Minimum
from workers.verification.backward.linear_form import LinearForm
from workers.verification.layers.rules import Box
from workers.verification.numerics import FEW, raised

__all__ = ["SORTED", "SortedDifferences"]

#: The share of a where neither is known to be the larger.
OPEN = 0.5


def _two(values: Sequence[Tensor]) -> Sequence[Tensor]:
    """The two that are sorted: of one value the halves of its channels."""
    return values[0].chunk(2, dim=1) if len(values) == 1 else values


@dataclass(frozen=True)
class SortedDifferences:
    """The rule of Maximum, Minimum and MaxMin (``LayerRules.differences``)."""

    def shares(self, layer: Layer, boxes: Sequence[Box]) -> Tensor:
        """Of a in the maximum, over the boxes of the inputs: 1, 0, or ``OPEN``."""
        low_a, low_b = _two([box[0] for box in boxes])
        high_a, high_b = _two([box[1] for box in boxes])
        decided = torch.where(low_a >= high_b, 1.0, torch.where(low_b >= high_a, 0.0, OPEN))
        return decided.to(low_a)

    def open(self, shares: Tensor, inputs: int) -> Tensor:
        """Where nothing is known, in the shape of an input."""
        places = shares == OPEN
        return torch.cat([places, places], dim=1) if inputs == 1 else places

    def carried(self, shares: Tensor, far: Sequence[Tensor], unit: float) -> tuple[Tensor, Tensor]:
        """(what is paid for each coefficient, how far the result is off), where the inputs are off
        by ``far``. unit: roundoff of the coefficients."""
        far_a, far_b = _two(far)
        either = torch.maximum(far_a, far_b)
        # And each new coefficient is a sum that is rounded.
        half = raised(far_a + far_b, FEW) * (0.5 + 4.0 * unit)
        paid = torch.where(shares == OPEN, half, 0.0)
        if len(far) == 1:
            return torch.cat([paid, paid], dim=1), torch.cat([either, either], dim=1)
        return paid, either

    def back(self, layer: Layer, shares: Tensor, rows: LinearForm) -> list[LinearForm]:
        """Rows on the inputs. shares: as ``rows`` pick them."""
        if isinstance(layer, MaxMin):
            p, q = rows.coefficients.chunk(2, dim=1)
            first, second = shares * p + (1.0 - shares) * q, (1.0 - shares) * p + shares * q
            return [rows.with_coefficients(torch.cat([first, second], dim=1))]
        share = 1.0 - shares if isinstance(layer, Minimum) else shares
        return [rows.with_coefficients(rows.coefficients * part) for part in (share, 1.0 - share)]


SORTED = SortedDifferences()
