"""Domains cut down to what may still be wrong: narrower boxes of inputs and of units.

Nothing is left to prove of an execution whose objective f exceeds a number t > 0. So the boxes of a
domain need to hold the others alone, those of f <= t (INVPROP, Kotha et al., NeurIPS 2023; relaxed
clipping, "Clip-and-Verify", NeurIPS 2025):

* **Inputs.** The bound of the domain is the least value of a plane that lies below f. Where the
  plane rises above t before a side of the box is reached, the side moves in, in closed form.
* **Units.** For every k >= 0, f <= t makes z' >= z' + k (f - t). The right side is carried back to
  the input like any objective, in ONE way for unit and objective together.

Splits are in f already: its multipliers stay in the rows. A unit whose new box lies on one side of
0 is decided by that, and a domain with an empty box holds no such execution: it is proved. What is
proved in such boxes is f > min(bound, t), no more (``Search`` counts it so).

**Rounding.** A box is made of proved bounds: k is any number, taken as it is; the way of f down to
the unit's block has paid for its coefficients, k times, and k C + W for its own two roundings and
the sums that it goes into, a share of (k |C| + |W|) reach. Comparisons round nothing. So a box is
empty only where two proofs contradict each other, beyond all that rounding may do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.verification.complete.branching import undecided
from workers.verification.complete.domain_bounds import DomainBounds, Slopes, Way
from workers.verification.complete.domains import Domains
from workers.verification.numerics import min_normal, nonzero, raised, slack

__all__ = ["SHARES", "clip_inputs", "refine_units"]

#: The numbers k that are tried, in units of how far unit and objective reach.
SHARES = (0.1, 0.4)
#: Numbers of the rows that are carried back at once.
TOGETHER = 2**18


def clip_inputs(
    bounds: DomainBounds, domains: Domains, found: Tensor, planes: Tensor, most: Tensor
) -> None:
    """Cut the boxes of the inputs, in place, to where the objective may be at most ``most`` [n].

    found [n], planes [n, inputs]: as ``DomainBounds.planes`` has them for these very domains.
    """
    low, high = domains.low, domains.high
    rest = raised((most - found).clamp_min(0.0), 1)[:, None]
    # Without a plane, or without its slope, NaN or infinite: nothing is cut.
    far = raised(rest / planes.abs(), 1) + min_normal(torch.float64)
    lost = slack(
        torch.maximum(low.abs(), high.abs()) + far, 4 * bounds.rounding.own, bounds.rounding
    )
    far = far + lost
    domains.high = torch.where(planes > 0, torch.fmin(high, low + far), high)
    domains.low = torch.where(planes < 0, torch.fmax(low, high - far), low)


def refine_units(bounds: DomainBounds, domains: Domains, most: Tensor) -> tuple[Tensor, int]:
    """(domains that are proved by it [n] bool, rows carried back): narrower boxes of the units that
    are not decided, block by block, and the sides that follow, in place.

    bounds: of the proof; most [n]: as for ``clip_inputs``. Raises OutOfTime.
    """
    network, inputs, rows = bounds.network, bounds.network.inputs, 0
    levels: list[Way] = []
    way, slopes = bounds.asked_of(domains), bounds.slopes(domains)
    for block in reversed(network.blocks):
        bounds.clock.check()
        bounds.back(way, slopes, [block])
        held = way.forms[:, : inputs + block.start].clone()
        levels.append(Way(held, way.constant, way.size))
    for place, block in enumerate(network.blocks):
        open_units = undecided(bounds, domains)[:, block]
        row, unit = open_units.nonzero(as_tuple=True)
        if not len(row):
            continue
        unit = unit + block.start
        objective = levels[len(levels) - 1 - place]
        slopes = bounds.slopes(domains)
        low, high = torch.empty_like(most[row]), torch.empty_like(most[row])
        together = max(1, TOGETHER // (inputs + block.start))
        for piece in torch.arange(len(row), device=row.device).split(together):
            asked = _Asked(bounds, domains, objective, most, slopes, row[piece], unit[piece], place)
            low[piece], high[piece] = asked.least(1.0), -asked.least(-1.0)
        rows += 2 * len(SHARES) * len(row)
        domains.lower[row, unit] = torch.maximum(domains.lower[row, unit], low)
        domains.upper[row, unit] = torch.minimum(domains.upper[row, unit], high)
        # Later blocks gain by the sides, too.
        _decide(bounds, domains)
    return (domains.lower > domains.upper).any(1), rows


def _decide(bounds: DomainBounds, domains: Domains) -> None:
    """The sides on which boxes lie."""
    open_units = undecided(bounds, domains)
    on = open_units & (domains.lower >= 0)
    off = open_units & (domains.upper <= 0) & ~on
    domains.sides = domains.sides.masked_fill(on, 1).masked_fill(off, -1)
    domains.numbers = domains.numbers.masked_fill(on | off, 0.0)


class _Asked:
    """Units of one block, each of one domain: ``unit`` [m] of the domains ``row`` [m].

    objective: the domains' own, carried back to this block.
    """

    def __init__(
        self,
        bounds: DomainBounds,
        domains: Domains,
        objective: Way,
        most: Tensor,
        slopes: Slopes,
        row: Tensor,
        unit: Tensor,
        place: int,
    ) -> None:
        network = bounds.network
        self.bounds, self.blocks = bounds, network.blocks[:place]
        self.domains = domains.some(row)
        start = network.blocks[place].start
        wide = network.inputs + start
        self.slopes = slopes.some(row, start)
        self.weight = bounds.weight[unit, :wide]
        self.constant, self.error = bounds.constant[unit], bounds.error[unit]
        self.forms, self.most = objective.forms[row], most[row]
        self.held, self.size = objective.constant[row], objective.size[row]
        reach = network.reach[:wide]
        self.own_reach = self.weight.abs() @ reach
        self.reach = (objective.forms.abs() @ reach)[row]

    def least(self, sign: float) -> Tensor:
        """The best proved lower bound [m] of ``sign`` times the units; -inf: none."""
        best = torch.full_like(self.most, -torch.inf)
        for share in SHARES:
            self.bounds.clock.check()
            k = share * self.own_reach / nonzero(self.reach)
            best = torch.maximum(best, self._bound(sign, k))
        return best

    def _bound(self, sign: float, k: Tensor) -> Tensor:
        bounds = self.bounds
        lost = bounds.lost_in_sum(k * self.reach + self.own_reach) + self.error
        held = k * (self.held - self.most)
        way = Way(
            torch.addcmul(sign * self.weight, k[:, None], self.forms),
            sign * self.constant + held - lost,
            self.constant.abs() + k * (self.size + self.most.abs()) + lost,
        )
        bounds.back(way, self.slopes.times(k), self.blocks)
        return bounds.ended(way, self.domains)
