"""What a bound that failed at one epsilon proves at smaller ones, with the boxes that it has.

The region of a smaller epsilon lies in the one whose boxes are known, so each value lies in those
boxes and in the ones that ball and box alone give over the smaller region: in what both share.
Boxes are what a backward bound pays most for; without new ones only the rows of the margins are
carried back again. Every epsilon that is tried is proved, or not, by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from workers.verification.backward.backward_pass import BackwardPass
from workers.verification.clock import OutOfTime
from workers.verification.enclosure import Enclosure, cut_box
from workers.verification.forward.propagation import propagate

__all__ = ["RETREATS", "retreat", "within"]

#: How many smaller epsilons are tried.
RETREATS = 2
#: Samples whose margin is missed by more than so many times itself are left alone: of their boxes
#: hardly anything is gained.
HOPE = 0.3
#: The first epsilon tried, as a share of where a straight line from the centre's margin ends; the
#: later ones, as shares of where a line through the last two ends.
FIRST, LATER = 0.9, 0.99
#: Significant bits of what is tried: the last ones of the margins depend on the batch.
BITS = 10


def within(backward: BackwardPass, epsilon: Tensor) -> BackwardPass:
    """The same pass over the smaller region of ``epsilon`` [batch], at most its own.

    Raises OutOfTime.
    """
    values: list[Enclosure | None] = []

    def cut(index: int, found: list[Enclosure | None]) -> None:
        for source in backward.compiled.steps[index].sources:
            cut_box(found[source], backward.values[source])

    region = replace(backward.region, epsilon=epsilon)
    propagate(
        backward.compiled,
        region,
        rounding=backward.rounding,
        dtype=backward.dtype,
        refine=cut,
        values=values,
        clock=backward.clock,
    )
    for own, known in zip(values, backward.values, strict=True):
        cut_box(own, known)
    return backward.over(region, values)


def retreat(
    backward: BackwardPass,
    least: Callable[[BackwardPass, Tensor], Tensor],
    found: Tensor,
    whole: Tensor,
    reached: Tensor,
) -> None:
    """Set ``reached`` [batch] to the largest epsilon proved of each sample that failed.

    least(pass over smaller regions, wanted [batch] bool) -> lower bounds [batch] float64 on the
    least margins there, of the wanted samples. found [batch]: the same over the pass's own region;
    whole [batch]: margins at the centre; both only say what is tried. When the time is over what
    has been proved counts.
    """
    most = backward.region.epsilon
    lack = -found / whole
    wanted = ~(found > 0) & (lack < HOPE) & torch.isfinite(lack) & (most > 0)
    before, lost = most, lack
    epsilon = FIRST * most / (1.0 + lack)
    for _ in range(RETREATS):
        epsilon = _short(torch.where(wanted, epsilon, most))
        wanted = wanted & (epsilon > reached) & (epsilon < most)
        if not bool(wanted.any()):
            return
        epsilon = torch.where(wanted, epsilon, most)
        try:
            margin = least(within(backward, epsilon), wanted)
        except OutOfTime:
            return
        proved = wanted & (margin > 0)
        reached.copy_(torch.where(proved, torch.maximum(reached, epsilon), reached))
        now = -margin / whole
        slope = (lost - now) / (before - epsilon)
        before, lost = epsilon, now
        root = epsilon - now / slope
        epsilon = torch.where((slope > 0) & torch.isfinite(slope), LATER * root, 0.0)


def _short(value: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(value)
    return torch.ldexp(torch.floor(mantissa * 2.0**BITS) / 2.0**BITS, exponent)
