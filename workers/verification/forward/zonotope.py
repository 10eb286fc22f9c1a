"""Zonotopes: a value of the network as a centre and common error terms, rounding beside them.

For every input of the region and every float32 evaluation of the deployed network there, ONE
assignment of all error terms e gives each value z' of the network up to its own slack:

    |z' - (centre + sum_m e_m terms_m)| <= slack    elementwise,    |e_m| <= 1.

Values share the terms, so a sum of two of them may cancel (zonotopes: Ghorbal, Goubault, Putot
2009; of ReLU networks: Gehr et al. 2018, Singh et al. 2018). Terms are kept in groups by where they
begin: group 0 are the input's, group i + 1 those of step i. In l2 the input's terms lie in the unit
ball together. Roundings of the deployed network and of this computation go into the slack
(docs/soundness.md, "Zonotopes").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.verification.numerics import (
    lost_in_norm,
    raised,
    rounded_up,
    slack,
)
from workers.verification.region import Region
from workers.verification.rounding import Rounding

__all__ = ["INPUT_TERMS", "Terms", "Zonotope", "of_region", "row_norms"]

#: The group of the input's terms.
INPUT_TERMS = 0

#: [batch, terms, *shape] by group.
Terms = Mapping[int, Tensor]


@dataclass
class Zonotope:
    """centre, slack [batch, *shape], slack >= 0; terms: by group, a group that is missing is 0.

    ball: the input's terms lie in the unit ball (l2), else each in [-1, 1].
    NaN propagates and proves nothing.
    """

    centre: Tensor
    terms: Terms
    slack: Tensor
    ball: bool
    _spread: Tensor | None = field(default=None, repr=False)

    def spread(self) -> Tensor:
        """How far all terms together move each number, [batch, *shape], rounded up."""
        if self._spread is None:
            total = torch.zeros_like(self.centre)
            for group, rows in self.terms.items():
                total = total + row_norms(rows, ball=self.ball and group == INPUT_TERMS)
            self._spread = raised(total, len(self.terms) + 1, total.dtype)
        return self._spread

    def reach(self) -> Tensor:
        """The largest magnitude of each number, slack included, rounded up."""
        size = self.centre.abs() + self.spread() + self.slack
        return raised(size, 3, size.dtype)

    def box(self, rounding: Rounding) -> tuple[Tensor, Tensor]:
        """Lower and upper ends of each number, [batch, *shape], rounded outward."""
        half = raised(self.spread() + self.slack, 4, self.centre.dtype)
        # Of the sums below, which are at most |centre| + half.
        half = half + slack(self.centre.abs() + half, 4 * rounding.own, rounding)
        return self.centre - half, self.centre + half


def row_norms(rows: Tensor, *, ball: bool) -> Tensor:
    """|.|_1, or of terms in the unit ball |.|_2, over the terms of a group, rounded up.

    rows [batch, terms, *shape] -> [batch, *shape].
    """
    count, dtype = rows.shape[1], rows.dtype
    if not ball:
        return raised(rows.abs().sum(1), count, dtype)
    # A gradient at 0 is none: numbers that no term moves.
    norm = raised(rows.square().sum(1).clamp_min(torch.finfo(dtype).tiny).sqrt(), count, dtype)
    return norm + lost_in_norm(count, dtype)


def of_region(region: Region, rounding: Rounding, dtype: torch.dtype) -> Zonotope:
    """The region as a zonotope: a term for every pixel.

    linf: the box, cut with the pixels' own; l2: the ball, not cut.
    """
    if region.norm == "l2":
        x = region.x.to(dtype)
        radius = rounded_up(raised(region.epsilon, 1), dtype)
        reach = radius.reshape(-1, *([1] * (x.dim() - 1))).expand_as(x)
        return Zonotope(x, {INPUT_TERMS: _diagonal(reach)}, torch.zeros_like(x), True)
    lower, upper = region.box(dtype)
    centre = (lower + upper) * 0.5
    half = raised(torch.maximum(upper - centre, centre - lower), 2, dtype)
    half = half + slack(centre.abs(), 2 * rounding.own, rounding)
    return Zonotope(centre, {INPUT_TERMS: _diagonal(half)}, torch.zeros_like(centre), False)


def _diagonal(reach: Tensor) -> Tensor:
    """A term for every number, [batch, numbers, *shape]."""
    flat = torch.diag_embed(reach.flatten(1))
    return flat.reshape(*flat.shape[:2], *reach.shape[1:])
