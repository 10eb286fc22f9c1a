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

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.layers.kinds import ReLU
from workers.verification.backward.concretization import Concretization
from workers.verification.backward.linear_form import LinearForm
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.complete.condensed_network import CondensedNetwork
from workers.verification.complete.domains import Domains
from workers.verification.forward.box_ball import quick_maximum
from workers.verification.layers.registry import rules_of
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

__all__ = ["DomainBounds", "Slopes", "Trace", "Way"]

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


@dataclass(frozen=True)
class Slopes:
    """Of every unit of every domain, [n, units] each: its lower line's slope ``below`` and
    intercept ``low``, its upper line's ``above`` and ``high``, its multiplier times its side."""

    below: Tensor
    above: Tensor
    low: Tensor
    high: Tensor
    multipliers: Tensor

    def some(self, rows: Tensor, count: int) -> Slopes:
        """Of these rows, and of the first ``count`` units alone."""
        fields = (self.below, self.above, self.low, self.high, self.multipliers)
        return Slopes(*(field[:, :count][rows] for field in fields))

    def times(self, factor: Tensor) -> Slopes:
        """For rows that are ``factor`` [n] >= 0 times what they were."""
        return replace(self, multipliers=self.multipliers * factor[:, None])


@dataclass
class Way:
    """Rows on their way back. forms [n, inputs + units]: coefficients of input and units; constant,
    size [n] float64: what is certain beside them, and the magnitude of the sums that made it."""

    forms: Tensor
    constant: Tensor
    size: Tensor


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
    _tiny: Tensor | float = field(default=0.0, init=False)
    _sides: tuple[Tensor, Tensor] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        network, dtype = self.network, self.dtype
        units, asked = network.units, network.objectives
        error, lost = units.error, asked.error
        if self.rounding.is_sound:
            tiny = lost_in_coefficients(dtype) * network.reach.sum() + lost_in_sums(dtype)
            self._tiny = raised(tiny * (len(network.blocks) + 1.0))
            size = units.weight.abs() @ network.reach + units.constant.abs() + error
            error = error + self._rounded(size)
            lost = lost + self.lost_in_sum(asked.weight.abs() @ network.reach)
        self.weight, self.constant = units.weight.to(dtype), units.constant.to(dtype)
        self.error = error.to(dtype)
        self.asked, self.asked_constant = asked.weight.to(dtype), asked.constant
        self.asked_error = lost
        self.lines = network.lines.to(dtype)
        self.lower, self.upper = network.lower.to(dtype), network.upper.to(dtype)
        below, above = self.region.box(torch.float64)
        self.box = below.flatten().to(dtype), above.flatten().to(dtype)
        relax = rules_of(ReLU()).relax
        assert relax is not None
        self._relax = relax

    def _rounded(self, size: Tensor) -> Tensor:
        """What this arithmetic may change of rows whose coefficients reach so far."""
        network = self.network
        own = self.rounding.own_gamma(network.count + 2.0 * len(network.blocks) + 8.0)
        return rounding_error(size, own, terms=float(network.inputs + network.count))

    def lost_in_sum(self, size: Tensor) -> Tensor:
        """What a row loses on its whole way back by the sums that its first coefficients go into;
        size [n]: |coefficients| . reach."""
        return self._rounded(size) + self._tiny if self.rounding.is_sound else 0.0 * size

    # ---- proof -------------------------------------------------------------------------------

    def proved(self, domains: Domains) -> Tensor:
        """Lower bounds [n] float64 of the objectives over the domains, whatever their numbers are;
        -inf where there is none. Raises OutOfTime."""
        return self.planes(domains)[0]

    def planes(self, domains: Domains) -> tuple[Tensor, Tensor]:
        """(the same bounds, coefficients [n, inputs] of the planes that they are the least of).

        Everywhere in a domain the objective is at least its bound and what the plane rises from
        where it is least: slacks are of the whole region. Raises OutOfTime.
        """
        self.clock.check()
        way = self.asked_of(domains)
        self.back(way, self.slopes(domains), self.network.blocks)
        return self.ended(way, domains), way.forms[:, : self.network.inputs]

    def _concretization(self) -> Concretization:
        if self._end is None:
            below, above = self.region.box(self.dtype)
            self._end = Concretization(self.region, below, above, self.rounding, self.dtype, ROUNDS)
        return self._end

    # ---- search ------------------------------------------------------------------------------

    def quick(self, domains: Domains) -> Tensor:
        """The same without a word about this arithmetic's rounding: a guess, [n] float64."""
        self.clock.check()
        way = self.asked_of(domains)
        self.back(way, self.slopes(domains), self.network.blocks)
        return way.constant + self._least(way.forms[:, : self.network.inputs], domains)[0].double()

    def traced(self, domains: Domains) -> tuple[Tensor, Trace]:
        """(bounds as ``quick``, where and how they are attained)."""
        self.clock.check()
        way, slopes = self.asked_of(domains), self.slopes(domains)
        rows = self.back(way, slopes, self.network.blocks)
        forms, inputs = way.forms, self.network.inputs
        least, points = self._least(forms[:, :inputs], domains)
        values = torch.empty_like(forms)
        values[:, :inputs] = points
        before = torch.empty_like(rows)
        self.clock.check()
        for block in self.network.blocks:
            columns = slice(inputs + block.start, inputs + block.stop)
            y, c = rows[:, block], forms[:, columns]
            z = values[:, : columns.start] @ self.weight[block, : columns.start].T
            z = z + self.constant[block] - self.error[block] * y.sign()
            below = slopes.below[:, block] * z + slopes.low[:, block]
            above = slopes.above[:, block] * z + slopes.high[:, block]
            values[:, columns] = torch.where(c > 0, below, above)
            before[:, block] = z
        trace = Trace(forms[:, inputs:], before, values[:, inputs:], points)
        return way.constant + least.double(), trace

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

    def _least(self, forms: Tensor, domains: Domains) -> tuple[Tensor, Tensor]:
        """(least value of rows [n, inputs] over the inputs, where it is attained)."""
        region, (below, above) = self.region, self.box
        if domains.low.shape[1]:
            below, above = domains.low.to(self.dtype), domains.high.to(self.dtype)
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

    def slopes(self, domains: Domains) -> Slopes:
        """What stands for each unit of each domain."""
        lines, sides = self.lines, domains.sides.to(self.dtype)
        undecided, active = sides == 0, sides.clamp_min(0.0)
        chosen = torch.maximum(domains.numbers.to(self.dtype), lines.least_slope).clamp_max(1.0)
        chosen = torch.where(lines.free, chosen, lines.lower_slope)
        # Boxes that were refined since: of the network (``milp``), or of the domain.
        low = torch.maximum(domains.lower.to(self.dtype), self.lower)
        high = torch.minimum(domains.upper.to(self.dtype), self.upper)
        own = self._relax(ReLU(), low, high, "crown", self.rounding)
        steep = torch.where(lines.splits, own.upper_slope, lines.upper_slope)
        shift = torch.where(lines.splits, own.upper_intercept, lines.upper_intercept)
        zero = torch.zeros_like(sides)
        return Slopes(
            torch.where(undecided, chosen, active),
            torch.where(undecided, steep, active),
            torch.where(undecided, lines.lower_intercept, zero),
            torch.where(undecided, shift, zero),
            domains.numbers.to(self.dtype).clamp_min(0.0) * sides,
        )

    def asked_of(self, domains: Domains) -> Way:
        """The objectives, before the first unit is replaced."""
        return Way(
            self.asked[domains.objective],
            (self.asked_constant - self.asked_error)[domains.objective],
            (self.asked_constant.abs() + self.asked_error)[domains.objective],
        )

    def back(self, way: Way, slopes: Slopes, blocks: Sequence[slice]) -> Tensor:
        """Replace the units of these blocks, the last first, in place; y of the units, [n, units].

        A decided unit has the slopes 0 or 1 exactly, and its multiplier is taken off last.
        """
        inputs = self.network.inputs
        rows = torch.zeros_like(slopes.below)
        for block in reversed(blocks):
            start = inputs + block.start
            c = way.forms[:, start : inputs + block.stop]
            positive = c.clamp_min(0.0)
            negative = c - positive
            y = positive * slopes.below[:, block] + negative * slopes.above[:, block]
            y = y - slopes.multipliers[:, block]
            rows[:, block] = y
            gains = negative * slopes.high[:, block] + positive * slopes.low[:, block]
            along, lost = y * self.constant[block], y.abs() * self.error[block]
            way.constant = way.constant + (gains + along - lost).sum(1, dtype=torch.float64)
            if self.rounding.is_sound:
                held = gains.abs() + along.abs() + lost
                way.size = way.size + held.sum(1, dtype=torch.float64)
            way.forms[:, :start].addmm_(y, self.weight[block, :start])
        return rows

    def ended(self, way: Way, domains: Domains) -> Tensor:
        """Least values [n] float64 of what is left, over the inputs; -inf: none."""
        flat = way.forms[:, : self.network.inputs]
        if self.region.norm == "linf":
            least = self._least_in_box(flat.double(), domains)
        else:
            shape = self.region.x.shape[1:]
            least = self._concretization().least(LinearForm(flat.reshape(-1, *shape), shape, None))
        found = way.constant + least
        if self.rounding.is_sound:
            found = found - sum_error(LONGEST_SUM) * way.size
        return torch.where(torch.isfinite(found), found, -torch.inf)

    def _least_in_box(self, flat: Tensor, domains: Domains) -> Tensor:
        """Lower bounds [n] float64 of rows [n, inputs] over each domain's box."""
        if domains.low.shape[1]:
            middle, half, reach = _middle(domains.low, domains.high)
            size = flat.abs()
            at_middle = (flat * middle).sum(1)
            fall, whole = (size * half).sum(1), (size * reach).sum(1)
        else:
            if self._sides is None:
                low, high = (end.flatten() for end in self.region.box(torch.float64))
                middle, half, reach = _middle(low, high)
                self._sides = middle, torch.stack([half, reach], 1)
            at_middle = flat @ self._sides[0]
            fall, whole = (flat.abs() @ self._sides[1]).unbind(1)
        if not self.rounding.is_sound:
            return at_middle - fall
        # Two sums and their difference; ``reach`` is at least |middle| + half.
        wide = flat.shape[1]
        lost = rounding_error(whole, sum_error(wide + 8), terms=float(wide + 8))
        return at_middle - fall - lost - lost_in_sums(torch.float64)


def _middle(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of boxes, float64: middle, half width, and middle's magnitude and half, both rounded up."""
    middle = 0.5 * low + 0.5 * high
    half = raised(torch.maximum(high - middle, middle - low), 1)
    return middle, half, raised(middle.abs() + half, 1)


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
