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
from workers.verification.backward.intermediate_bounds import Solve
from workers.verification.backward.linear_form import LinearForm
from workers.verification.backward.multipliers import (
    AT_INPUT,
    BOX_GRID,
    GRID,
    Multipliers,
    Start,
    best_column,
)
from workers.verification.backward.quadratic_pass import QuadraticPass
from workers.verification.backward.retreat import retreat
from workers.verification.bounds.crown import final_forms, refine_boxes
from workers.verification.clock import UNLIMITED, Clock, OutOfTime
from workers.verification.enclosure import Enclosure
from workers.verification.forward.margins import margin_lower_bounds, margins_at_centre
from workers.verification.forward.propagation import forward_step, propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.turned_pairs import with_turned_pairs
from workers.verification.numerics import euclidean_norm, raised
from workers.verification.region import Region
from workers.verification.rounding import Rounding

__all__ = ["crown_ball_margins", "recast"]

BETAS = (0.9, 0.98)
#: After every so many steps a row stops that would not reach what it needs if each step to come
#: gained so many times as much as those before, for its rate.
WINDOW, SPARE = 10, 1.5
#: A row climbs beyond what it needs by so many times what its last proof lost by rounding.
BEYOND = 1.25
#: In plain forward passes, counted like those of CROWN: what each sample costs, a row for the box
#: of a neuron, a gradient step of a row of the margins, and its proof.
SAMPLE_PASSES, BOX_PASSES, STEP_PASSES, PROOF_PASSES = 500.0, 1.0, 75.0, 40.0
#: Multipliers that are kept of the rows of a batch, for a retreat.
KEPT_NUMBERS = 2**26


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
    reached: Tensor | None = None,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Lower bounds [batch, classes] on f_y - f_j over the region, over ball and box together.

    rounds: of the search, at most; spent [batch] float64: forward passes, added in place; reached
    [batch] float64: set to the largest smaller epsilon proved of what fails (``retreat``).

    Sound for every row, in the deployed network too (``rounding``); the label's column is inf, a
    row of -inf certifies nothing. When the time is over what has been proved counts; raises
    OutOfTime before the boxes are there.
    """
    compiled = with_turned_pairs(compiled)
    backward = BackwardPass(compiled, region, [], rounding, dtype, "crown", clock=clock)
    quadratic = QuadraticPass(backward)
    spent = torch.zeros_like(region.epsilon) if spent is None else spent
    spent += SAMPLE_PASSES

    def plain(backward: BackwardPass, value: int, rows: LinearForm, needed: Tensor) -> Tensor:
        _charge(spent, rows, BOX_PASSES)
        start = Start(quadratic, BOX_GRID)
        return best_column(quadratic.lower_bound(value, rows, start, len(BOX_GRID)))[0]

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
    search = _Search(backward, rounds, spent, keeps=reached is not None)
    found = final_forms(backward, labels, bounds, solve=search.solve)
    if reached is not None:

        def least(smaller: BackwardPass, wanted: Tensor) -> Tensor:
            asked = bounds.masked_fill(~wanted[:, None], torch.inf)
            return final_forms(smaller, labels, asked, solve=search.again(wanted)).amin(1)

        whole = margins_at_centre(compiled.head, state, labels)
        retreat(backward, least, found.amin(1), whole, reached)
    return found


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


@dataclass
class _Search:
    """The search of multipliers for the last rows, and the passes that guide and prove it."""

    backward: BackwardPass
    rounds: int
    spent: Tensor
    keeps: bool = False
    _passes: list[QuadraticPass] = field(default_factory=list)
    #: Of all rows so far, where they are kept: their samples and multipliers; the last round's.
    _samples: list[Tensor] = field(default_factory=list)
    _kept: Multipliers | None = None
    _last: Round = Round(0)

    def passes(self) -> list[QuadraticPass]:
        """(the one that guides, the one that proves)."""
        if not self._passes:
            backward = self.backward
            quick = torch.float32 if backward.compiled.float32_safe else torch.float64
            guide = QuadraticPass(recast(backward, Rounding.ignored(), quick))
            self._passes = [guide, _proof(backward)]
        return self._passes

    def solve(self, backward: BackwardPass, value: int, rows: LinearForm, needed: Tensor) -> Tensor:
        """Best lower bounds [rows] proved of rows . value; a row above ``needed`` stops.

        Raises OutOfTime where there was no time for any.
        """
        guide, proof = self.passes()
        dtype = guide.backward.dtype
        guided = rows.with_coefficients(rows.coefficients.to(dtype))
        start = Start(guide)
        with torch.no_grad():
            reached, column = best_column(guide.lower_bound(value, guided, start, len(GRID)))
        chosen = held = Multipliers.after(start, column)
        centre = guide.at_centre(value, guided)
        best = torch.full_like(needed, -math.inf)
        aim = needed.clone()
        still = torch.arange(len(needed), device=needed.device)
        for turn in (Round(0), *ROUNDS[: self.rounds]):
            try:
                if turn.steps:
                    left = _hopeful(centre - best, centre - needed, turn.hope, rows.sample)[still]
                    chosen = chosen.some(left)
                    still, reached = still[left], reached[left]
                    if not still.numel():
                        break
                    part = _some(guided, still)
                    chosen, reached = self._climb(guide, value, part, aim[still], chosen, turn)
                    if self.keeps:
                        held.put(still, chosen)
                    self._last = turn
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
            chosen = chosen.some(left)
            still, reached = still[left], reached[left]
        if self.keeps:
            self._keep(held, rows)
        return best

    def _keep(self, held: Multipliers, rows: LinearForm) -> None:
        """For ``again``, as long as they fit into memory."""
        both = held if self._kept is None else self._kept.followed_by(held)
        if both.numbers() > KEPT_NUMBERS:
            self.keeps = False
            return
        self._kept = both
        self._samples.append(_sample_of(rows))

    def again(self, wanted: Tensor) -> Solve:
        """Proves the rows of the wanted samples [batch] bool, in their order, by the multipliers
        kept of them: over a smaller region, for which they are as valid. Raises OutOfTime for rows
        of which none are kept."""
        samples = torch.cat(self._samples) if self._samples else wanted.new_zeros(0).long()
        places = wanted[samples].nonzero().flatten()
        begun = 0
        proof: list[QuadraticPass] = []

        def solve(backward: BackwardPass, value: int, rows: LinearForm, needed: Tensor) -> Tensor:
            nonlocal begun
            mine = places[begun : begun + len(needed)]
            begun += len(needed)
            if self._kept is None or len(mine) < len(needed):
                raise OutOfTime
            if not proof:
                proof.append(_proof(backward))
            _charge(self.spent, rows, PROOF_PASSES)
            chosen = self._kept.some(mine)
            return self._proved(proof[0], value, rows, chosen, self._last)

        return solve

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
        _charge(self.spent, rows, STEP_PASSES * steps)
        return moving.mapped(lambda held: held.detach()), best


def _proof(backward: BackwardPass) -> QuadraticPass:
    """In float64, with rounding if the pass has it."""
    sound = backward.rounding.is_sound
    rounding = Rounding.sound(torch.float64) if sound else backward.rounding
    return QuadraticPass(recast(backward, rounding, torch.float64))


def _sample_of(rows: LinearForm) -> Tensor:
    """Of which sample each row is, [rows]."""
    if rows.sample is not None:
        return rows.sample
    given = rows.coefficients
    return torch.zeros(len(given), dtype=torch.int64, device=given.device)


def _charge(spent: Tensor, rows: LinearForm, passes: Tensor | float) -> None:
    """Add the passes of each row (or of all alike) to those of its sample, in place."""
    sample = _sample_of(rows)
    spent.index_add_(0, sample, torch.zeros_like(sample, dtype=spent.dtype) + passes)


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
