"""CROWN over ball and box with free slopes (``crown-ball``): a chained quadratic bound.

Beside its linear function every row carries a multiple of the squared distance back to the input
(``backward.quadratic_pass``), so that ball and box count together at every layer. Slopes of ALL
neurons, stable ones too, and one multiplier per layer are optimised per row by Adam, in float32
without a word about rounding: what it finds is a certificate's numbers, no certificate. Each is
then proved by one pass in float64, rounding of the deployed network inside; any numbers whatever
give a valid bound.

It begins as SDP-CROWN does (Chiu et al., ICML 2025), whose bound it contains, as it contains
CROWN's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.verification.backward.backward_pass import BackwardPass
from workers.verification.backward.coordinate_minimum import Cells
from workers.verification.backward.input_ball import InputBall
from workers.verification.backward.linear_form import LinearForm
from workers.verification.backward.quadratic_pass import QuadraticPass
from workers.verification.bounds.crown import final_forms, refine_boxes
from workers.verification.clock import UNLIMITED, Clock, OutOfTime
from workers.verification.enclosure import Enclosure
from workers.verification.forward.margins import margin_lower_bounds
from workers.verification.forward.propagation import forward_step, propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.numerics import euclidean_norm, nonzero, raised
from workers.verification.region import Region
from workers.verification.rounding import Rounding

__all__ = ["Multipliers", "crown_ball_margins", "recast"]

#: The key of what is at the input, and the first logarithm of the excess there.
AT_INPUT, EXCESS = 0, -1.0
#: Logarithms of the multipliers that are tried first, as shares of |g| / radius; and none at all.
GRID = (-math.inf, -6.0, -4.0, -2.5, -1.0, 0.0)
#: The same for boxes of intermediate values, of which there are thousands.
BOX_GRID = (-math.inf, -3.0, -1.0)
BETAS = (0.9, 0.98)
#: After every so many steps a row stops that would not reach what it needs if each step to come
#: gained so many times as much as those before, for its rate.
WINDOW, SPARE = 10, 1.5
#: A row climbs beyond what it needs by so many times what its last proof lost by rounding.
BEYOND = 1.25
#: In plain forward passes, counted like those of CROWN: boxes and first multipliers of a sample,
#: and a gradient step of a row.
BOX_PASSES, STEP_PASSES = 2_000.0, 75.0


@dataclass(frozen=True)
class Round:
    """One round of the search: gradient steps, rates (of logarithms too) and their decay.

    directions: steps of conjugate gradients for the exact term at the input, per gradient step and
    for the proof; 0: without that term. hope: tried only on samples no class of which is lost by
    more than so many times its margin at the centre.
    """

    steps: int
    hope: float = math.inf
    rate: float = 0.05
    log_rate: float = 0.2
    decay: float = 0.975
    directions: tuple[int, int] = (0, 0)

    def still_gained(self, step: int) -> float:
        """How many times what the last ``WINDOW`` steps have gained all that follow may gain: as
        much for each unit of the rates that are left, and ``SPARE`` times."""
        left = self.decay**step - self.decay**self.steps
        return SPARE * left / (self.decay ** (step - WINDOW) - self.decay**step)


#: What is proved between two rounds is done.
ROUNDS = (Round(20, 3.0), Round(40, 1.5), Round(120, 1.2, 0.04, 0.1, 0.98, (4, 40)))


def crown_ball_margins(
    compiled: CompiledNetwork,
    region: Region,
    labels: Tensor,
    rounding: Rounding,
    dtype: torch.dtype,
    *,
    rounds: int = len(ROUNDS),
    spent: Tensor | None = None,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Lower bounds [batch, classes] on f_y - f_j over the region, over ball and box together.

    rounds: of the search, at most; spent [batch] float64: forward passes, added in place.

    Sound for every row, in the deployed network too (``rounding``); the label's column is inf, a
    row of -inf certifies nothing. When the time is over what has been proved counts; raises
    OutOfTime before the boxes are there.
    """
    backward = BackwardPass(compiled, region, [], rounding, dtype, "crown", clock=clock)
    quadratic = QuadraticPass(backward)

    def plain(backward: BackwardPass, value: int, rows: LinearForm, needed: Tensor) -> Tensor:
        start = _Start(quadratic, BOX_GRID)
        return _best(quadratic.lower_bound(value, rows, start, len(BOX_GRID)))[0]

    def refine(index: int, values: list[Enclosure | None]) -> None:
        backward.values = values
        refine_boxes(backward, index, plain)

    state = propagate(
        compiled,
        region,
        rounding=rounding,
        dtype=dtype,
        refine=refine,
        values=backward.values,
        clock=clock,
    )
    bounds = margin_lower_bounds(compiled.head, state, labels, rounding, clock=clock)
    spent = torch.zeros_like(region.epsilon) if spent is None else spent
    spent += BOX_PASSES
    search = _Search(backward, rounds, spent)
    return final_forms(backward, labels, bounds, solve=search.solve)


def recast(backward: BackwardPass, rounding: Rounding, dtype: torch.dtype) -> BackwardPass:
    """The same pass in another arithmetic: its boxes, and balls around centres computed anew."""
    values: list[Enclosure | None] = []
    for number, state in enumerate(backward.values):
        if state is None or state.lower is None or state.upper is None:
            raise ValueError(f"the value {number} has no box")
        if number == 0:
            centre = backward.region.x.to(dtype)
        else:
            step = backward.compiled.steps[number - 1]
            inputs = [values[source] for source in step.sources]
            centre = forward_step(step, [held.centre for held in inputs if held is not None])
        lower, upper = state.lower.to(dtype), state.upper.to(dtype)
        moved = euclidean_norm(centre.to(torch.float64) - state.centre.to(torch.float64))
        radius = raised(state.radius + raised(moved, 1), 1)
        values.append(Enclosure(centre, radius, lower, upper, state.valid, state.round))
    return BackwardPass(
        backward.compiled,
        backward.region,
        values,
        rounding,
        dtype,
        backward.slopes,
        backward.rounds,
        clock=backward.clock,
    )


def _best(bounds: Tensor) -> tuple[Tensor, Tensor]:
    """The best column [rows] of bounds [rows, columns], and which it is."""
    best = bounds.nan_to_num(-torch.inf, torch.inf, -torch.inf).max(1)
    return best.values, best.indices


class _Start:
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
    def after(cls, start: _Start, column: Tensor) -> Multipliers:
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

    def mapped(self, change: object) -> Multipliers:
        """With every tensor changed."""
        held = (self.factors, self.shifts, self.logs, self.units, self.scales, self.excess)
        return Multipliers(
            *({index: change(x) for index, x in part.items()} for part in held)  # type: ignore[operator]
        )


@dataclass
class _Search:
    """The search of multipliers for the last rows, and the passes that guide and prove it."""

    backward: BackwardPass
    rounds: int
    spent: Tensor
    _passes: list[QuadraticPass] = field(default_factory=list)

    def passes(self) -> list[QuadraticPass]:
        """(the one that guides, the one that proves)."""
        if not self._passes:
            backward = self.backward
            quick = torch.float32 if backward.compiled.float32_safe else torch.float64
            proof = Rounding.sound(torch.float64)
            if not backward.rounding.is_sound:
                proof = backward.rounding
            self._passes = [
                QuadraticPass(recast(backward, Rounding.ignored(), quick)),
                QuadraticPass(recast(backward, proof, torch.float64)),
            ]
        return self._passes

    def solve(self, backward: BackwardPass, value: int, rows: LinearForm, needed: Tensor) -> Tensor:
        """Best lower bounds [rows] proved of rows . value; a row above ``needed`` stops.

        Raises OutOfTime where there was no time for any.
        """
        guide, proof = self.passes()
        dtype = guide.backward.dtype
        guided = rows.with_coefficients(rows.coefficients.to(dtype))
        start = _Start(guide)
        with torch.no_grad():
            reached, column = _best(guide.lower_bound(value, guided, start, len(GRID)))
        chosen = Multipliers.after(start, column)
        centre = guide.at_centre(value, guided)
        best = torch.full_like(needed, -math.inf)
        aim = needed.clone()
        still = torch.arange(len(needed), device=needed.device)
        for turn in (Round(0), *ROUNDS[: self.rounds]):
            try:
                if turn.steps:
                    left = _hopeful(centre - best, centre - needed, turn.hope, rows.sample)[still]
                    chosen = chosen.mapped(lambda held, left=left: held[left])
                    still, reached = still[left], reached[left]
                    if not still.numel():
                        break
                    part = _some(guided, still)
                    chosen, reached = self._climb(guide, value, part, aim[still], chosen, turn)
                found = self._proved(proof, value, _some(rows, still), chosen, turn)
            except OutOfTime:
                if bool(torch.isneginf(best).all()):
                    raise
                break
            best[still] = torch.fmax(best[still], found)
            # What the proof loses by rounding has to be climbed too.
            lost = (reached - found).nan_to_num(0.0, 0.0, 0.0).clamp_min(0.0)
            aim[still] = needed[still] + BEYOND * lost
            left = (best[still] <= needed[still]) & torch.isfinite(found)
            if not chosen.factors or not bool(left.any()):
                break
            chosen = chosen.mapped(lambda held, left=left: held[left])
            still, reached = still[left], reached[left]
        return best

    def _proved(
        self,
        proof: QuadraticPass,
        value: int,
        rows: LinearForm,
        chosen: Multipliers,
        turn: Round,
    ) -> Tensor:
        exact = rows.with_coefficients(rows.coefficients.to(torch.float64))
        numbers = chosen.mapped(lambda held: held.double())
        end = numbers.end(turn.directions[1])
        return proof.lower_bound(value, exact, numbers, end=end)[:, 0]

    def _climb(
        self,
        guide: QuadraticPass,
        value: int,
        rows: LinearForm,
        needed: Tensor,
        chosen: Multipliers,
        turn: Round,
    ) -> tuple[Multipliers, Tensor]:
        """The best multipliers met in one round, and the bounds [rows] that they gave."""
        moving = chosen.mapped(lambda held: held.clone())
        free = [x.requires_grad_() for part in moving.free() for x in part.values()]
        slopes = [*moving.factors.values(), *moving.shifts.values()]
        logs = [*moving.logs.values(), *moving.excess.values()]
        optimizer = torch.optim.Adam(
            [{"params": slopes, "lr": turn.rate}, {"params": logs, "lr": turn.log_rate}],
            betas=BETAS,
        )
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, turn.decay)
        end = moving.end(turn.directions[0])
        kept = [x.detach().clone() for x in free]
        best = torch.full_like(needed, -math.inf)
        behind = best
        pulls = torch.ones_like(needed, dtype=torch.bool)
        steps = torch.zeros_like(needed)
        cells: dict[int, Cells] = {}
        offset = guide.at_centre(value, rows)
        for step in range(turn.steps + 1):
            with torch.enable_grad():
                if end is not None:
                    end.excess = moving.excess[AT_INPUT].exp()
                bound = guide.fall(value, rows, moving, cells=cells, end=end)[:, 0] + offset
            found = bound.detach()
            better = (found > best) & pulls
            best = torch.where(better, found, best)
            for old, new in zip(kept, free, strict=True):
                mask = better.reshape(-1, *([1] * (new.dim() - 1)))
                torch.where(mask, new.detach(), old, out=old)
            pulls = pulls & (best <= needed) & torch.isfinite(found)
            if step and step % WINDOW == 0:
                reach = best + turn.still_gained(step) * (best - behind)
                pulls = pulls & _all_of_sample(~(reach < needed), rows.sample)
                behind = best
            if step == turn.steps or not bool(pulls.any()):
                break
            steps += pulls
            optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                (-bound[pulls].sum()).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            for old, new in zip(kept, free, strict=True):
                new.copy_(old)
        sample = torch.zeros_like(steps, dtype=torch.int64) if rows.sample is None else rows.sample
        self.spent.index_add_(0, sample, STEP_PASSES * steps)
        return moving.mapped(lambda held: held.detach()), best


def _hopeful(lost: Tensor, margin: Tensor, hope: float, sample: Tensor | None) -> Tensor:
    """[rows] bool: of samples whose rows have all lost at most ``hope`` margins at the centre."""
    return _all_of_sample(lost <= hope * margin, sample)


def _all_of_sample(good: Tensor, sample: Tensor | None) -> Tensor:
    """[rows] bool: of samples (None: all rows are of one) whose rows are all ``good``."""
    if sample is None:
        return good.all().expand_as(good)
    bad = torch.zeros(int(sample.max()) + 1, dtype=torch.int64, device=good.device)
    return bad.index_add(0, sample, (~good).to(torch.int64))[sample] == 0


def _some(rows: LinearForm, chosen: Tensor) -> LinearForm:
    """These rows alone; dense ones."""
    sample = None if rows.sample is None else rows.sample[chosen]
    return LinearForm(rows.coefficients[chosen], rows.shape, sample)
