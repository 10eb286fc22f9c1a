"""Lower bounds over domains: one way back to the input with slopes and multipliers, many at once.

beta-CROWN (Wang et al., NeurIPS 2021) on the condensed network. At a unit with the coefficient c
after the activation a, over the units z before it:

* nothing decided: c a >= y z + intercept, y = c times the slope of its lower or upper line;
* z' >= 0, where a' = z': c a' >= (c - beta) z' for every beta >= 0;
* z' <= 0, where a' = 0:  c a' >= beta z' for every beta >= 0.

**Splits are made at the deployed value.** z' above is the float32 number that the deployed network
has before the activation, whatever the order of summation. Every execution at every input of the
region has z' >= 0 or z' <= 0 there (or both), and a deployed ReLU is exact on either side; so the
two children together hold every execution of their parent, without any tolerance. What rounding
may do is paid where z' is replaced by W . (x', a') + b, off by at most d: |y| d, multipliers inside
y. A real-valued split would need the same d on both children, and lose it twice.

**Rounding of this arithmetic.** Slopes of decided units are 0 and 1, so that c times them is exact,
and rounding is monotone: the computed c - beta belongs to some multiplier >= 0, and costs nothing.
Every other y is off by one rounding, coefficients by the sums that made them: a share of |y|
(|W| reach + |b|), which is added to d once (Higham 2002, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.verification.backward.concretization import Concretization
from workers.verification.backward.linear_form import LinearForm
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.complete.condensed_network import CondensedNetwork
from workers.verification.complete.domains import Domains
from workers.verification.forward.box_ball import quick_maximum
from workers.verification.numerics import (
    LONGEST_SUM,
    euclidean_norm,
    lost_in_coefficients,
    lost_in_sums,
    nonzero,
    raised,
    rounding_error,
    sum_error,
)
from workers.verification.region import Region
from workers.verification.rounding import Rounding

__all__ = ["DomainBounds", "Trace"]

#: Rounds of the search over ball and box together.
ROUNDS = 2
BETAS = (0.9, 0.99)
#: Rows that have stopped are left out once no more than this share goes on.
KEPT = 0.75


@dataclass(frozen=True)
class Trace:
    """What a way back met, and the way of its least value forth again.

    coefficients, before, after [n, units]: of the unit's value after the activation; the relaxed
    values before and after it at the point that attains the bound; points [n, inputs]: that point.
    """

    coefficients: Tensor
    before: Tensor
    after: Tensor
    points: Tensor


@dataclass
class DomainBounds:
    """Bounds over domains of one sample.

    network: condensed; region: of the one sample; rounding: of this arithmetic, ``dtype``. Where it
    is ignored the bounds are no proof (what the deployed network rounds is counted all the same).
    """

    network: CondensedNetwork
    region: Region
    rounding: Rounding
    dtype: torch.dtype
    clock: Clock = UNLIMITED
    _end: Concretization | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        network, dtype = self.network, self.dtype
        units, asked = network.units, network.objectives
        error, lost = units.error, asked.error
        if self.rounding.is_sound:
            own = self.rounding.own_gamma(network.count + 2.0 * len(network.blocks) + 8.0)
            wide = float(network.inputs + network.count)
            size = units.weight.abs() @ network.reach + units.constant.abs() + error
            error = error + rounding_error(size, own, terms=wide)
            lost = lost + rounding_error(asked.weight.abs() @ network.reach, own, terms=wide)
            tiny = lost_in_coefficients(dtype) * network.reach.sum() + lost_in_sums(dtype)
            lost = lost + raised(tiny * (len(network.blocks) + 1.0))
        self.weight, self.constant = units.weight.to(dtype), units.constant.to(dtype)
        self.error = error.to(dtype)
        self.asked, self.asked_constant = asked.weight.to(dtype), asked.constant
        self.asked_error = lost
        self.lines = network.lines.to(dtype)
        self.lower, self.upper = network.lower.to(dtype), network.upper.to(dtype)
        below, above = self.region.box(torch.float64)
        self.box = below.flatten().to(dtype), above.flatten().to(dtype)

    # ---- proof -------------------------------------------------------------------------------

    def proved(self, domains: Domains) -> Tensor:
        """Lower bounds [n] float64 of the objectives over the domains, whatever their numbers are;
        -inf where there is none. Raises OutOfTime."""
        self.clock.check()
        forms, _, constant, size = self._back(domains)
        inputs = self.network.inputs
        flat = forms[:, :inputs]
        rows = LinearForm(flat.reshape(-1, *self.region.x.shape[1:]), self.region.x.shape[1:], None)
        found = constant + self._concretization().least(rows)
        if self.rounding.is_sound:
            found = found - sum_error(LONGEST_SUM) * size
        return torch.where(torch.isfinite(found), found, -torch.inf)

    def _concretization(self) -> Concretization:
        if self._end is None:
            below, above = self.region.box(self.dtype)
            self._end = Concretization(self.region, below, above, self.rounding, self.dtype, ROUNDS)
        return self._end

    # ---- search ------------------------------------------------------------------------------

    def quick(self, domains: Domains) -> Tensor:
        """The same without a word about this arithmetic's rounding: a guess, [n] float64."""
        self.clock.check()
        forms, _, constant, _ = self._back(domains)
        return constant + self._least(forms[:, : self.network.inputs])[0].double()

    def traced(self, domains: Domains) -> tuple[Tensor, Trace]:
        """(bounds as ``quick``, where and how they are attained)."""
        self.clock.check()
        forms, rows, constant, _ = self._back(domains)
        inputs = self.network.inputs
        least, points = self._least(forms[:, :inputs])
        sides = domains.sides.to(self.dtype)
        slopes = self._slopes(domains, sides)
        values = torch.empty_like(forms)
        values[:, :inputs] = points
        before = torch.empty_like(rows)
        self.clock.check()
        for block in self.network.blocks:
            columns = slice(inputs + block.start, inputs + block.stop)
            y, c = rows[:, block], forms[:, columns]
            z = values[:, : columns.start] @ self.weight[block, : columns.start].T
            z = z + self.constant[block] - self.error[block] * y.sign()
            below, above, low, high = (part[:, block] for part in slopes)
            values[:, columns] = torch.where(c > 0, below * z + low, above * z + high)
            before[:, block] = z
        trace = Trace(forms[:, inputs:], before, values[:, inputs:], points)
        return constant + least.double(), trace

    def climb(
        self,
        domains: Domains,
        steps: int,
        rates: tuple[float, float],
        decay: float,
        enough: Tensor,
    ) -> Tensor:
        """Improves the numbers of the domains in place by Adam; the best bounds met, [n] float64.

        rates: of slopes and of multipliers (these in units of the row's coefficients). A row stops
        where its bound exceeds ``enough`` [n]; it does not depend on the others.
        """
        best = torch.full_like(domains.bound, -torch.inf)
        still = torch.arange(len(domains), device=best.device)
        moving = domains.some(still)
        ascent: _Ascent | None = None
        for step in range(steps + 1):
            found, trace = self.traced(moving)
            better = found > best[still]
            best[still] = torch.where(better, found, best[still])
            domains.numbers[still] = torch.where(
                better[:, None], moving.numbers, domains.numbers[still]
            )
            going = (best[still] <= enough[still]) & torch.isfinite(found)
            if step == steps or not bool(going.any()):
                break
            sides = moving.sides.to(self.dtype)
            decided = sides != 0
            if ascent is None:
                scale = trace.coefficients.abs().mean(1, keepdim=True)
                ascent = _Ascent(torch.where(decided, rates[1] * scale, rates[0]))
            along = torch.where(decided, -sides, trace.coefficients.clamp_min(0.0))
            moved = moving.numbers + ascent.move(along * trace.before) * decay**step
            moving.numbers = torch.where(decided, moved.clamp_min(0.0), moved.clamp(0.0, 1.0)).to(
                domains.numbers.dtype
            )
            if int(going.sum()) <= KEPT * len(going):
                still, moving = still[going], moving.some(going)
                ascent = ascent.some(going)
        return best

    def _least(self, forms: Tensor) -> tuple[Tensor, Tensor]:
        """(least value of rows [n, inputs] over the region, where it is attained)."""
        region, (below, above) = self.region, self.box
        centre = region.x.flatten().to(self.dtype)
        if region.norm == "linf":
            point = torch.where(forms > 0, below, above)
            return (forms * point).sum(1), point
        epsilon = region.epsilon.to(self.dtype)
        at_centre = forms @ centre
        if not region.clip:
            length = torch.linalg.vector_norm(forms, dim=1)
            point = centre - epsilon * forms / nonzero(length)[:, None]
            return at_centre - epsilon * length, point
        low, high = (below - centre).clamp_max(0.0), (above - centre).clamp_min(0.0)
        corner = euclidean_norm(torch.maximum(-low, high)[None])
        count = len(forms)
        reach = region.epsilon.expand(count)
        drop, move = quick_maximum(
            -forms, low.expand_as(forms), high.expand_as(forms), reach, corner.expand(count), ROUNDS
        )
        return at_centre - drop.to(self.dtype), centre + move

    def _slopes(self, domains: Domains, sides: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Lower and upper slopes, lower and upper intercepts of every unit, [n, units] each."""
        lines, undecided = self.lines, 1.0 - sides.abs()
        active = sides.clamp_min(0.0)
        chosen = torch.maximum(domains.numbers.to(self.dtype), lines.least_slope).clamp_max(1.0)
        chosen = torch.where(lines.free, chosen, lines.lower_slope)
        return (
            torch.where(sides == 0, chosen, active),
            torch.where(sides == 0, lines.upper_slope, active),
            lines.lower_intercept * undecided,
            lines.upper_intercept * undecided,
        )

    def _back(self, domains: Domains) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(coefficients of inputs and units, y of units, constant, magnitude of its sums).

        A decided unit has the slopes 0 or 1 exactly, and its multiplier is taken off last.
        """
        inputs = self.network.inputs
        forms = self.asked[domains.objective]
        constant = (self.asked_constant - self.asked_error)[domains.objective]
        size = (self.asked_constant.abs() + self.asked_error)[domains.objective]
        sides = domains.sides.to(self.dtype)
        multipliers = domains.numbers.to(self.dtype).clamp_min(0.0) * sides
        slopes = self._slopes(domains, sides)
        rows = torch.empty_like(forms[:, inputs:])
        for block in reversed(self.network.blocks):
            start = inputs + block.start
            c = forms[:, start : inputs + block.stop]
            below, above, low, high = (part[:, block] for part in slopes)
            positive = c.clamp_min(0.0)
            negative = c - positive
            y = positive * below + negative * above - multipliers[:, block]
            rows[:, block] = y
            gains = negative * high + positive * low
            along, lost = y * self.constant[block], y.abs() * self.error[block]
            constant = constant + (gains + along - lost).sum(1, dtype=torch.float64)
            if self.rounding.is_sound:
                held = gains.abs() + along.abs() + lost
                size = size + held.sum(1, dtype=torch.float64)
            forms[:, :start].addmm_(y, self.weight[block, :start])
        return forms, rows, constant, size


class _Ascent:
    """Adam for rows that stop one by one; ``rates`` [n, units]."""

    def __init__(self, rates: Tensor) -> None:
        self.rates = rates
        self.first, self.second = torch.zeros_like(rates), torch.zeros_like(rates)
        #: Shares of the averages that are still 0, as they began.
        self.missing = [1.0, 1.0]

    def move(self, gradient: Tensor) -> Tensor:
        """The next step along the gradient."""
        self.missing = [share * beta for share, beta in zip(self.missing, BETAS, strict=True)]
        self.first.mul_(BETAS[0]).add_(gradient, alpha=1.0 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1.0 - BETAS[1])
        corrected = (1.0 - self.missing[1]) ** 0.5 / (1.0 - self.missing[0])
        return self.first / nonzero(self.second.sqrt()) * self.rates * corrected

    def some(self, chosen: Tensor) -> _Ascent:
        """Of these rows alone."""
        part = _Ascent(self.rates[chosen])
        part.first, part.second = self.first[chosen], self.second[chosen]
        part.missing = self.missing
        return part
