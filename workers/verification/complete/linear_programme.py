"""The linear programme of a domain, by HiGHS: its duals are hints for slopes and multipliers.

Nothing that the solver says is believed: its numbers go through ``DomainBounds.proved`` like any
others, and a programme that it calls infeasible gives no hint at all.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import highspy
import numpy as np
import torch
from highspy._core import _Highs
from numpy.typing import NDArray
from torch import Tensor

from workers.verification.clock import UNLIMITED, Clock
from workers.verification.complete.condensed_network import CondensedNetwork
from workers.verification.complete.domains import Domains
from workers.verification.region import Region

__all__ = ["Hints", "LinearProgramme"]

log = logging.getLogger(__name__)

#: Entries of a programme that is worth solving.
LARGEST = 2**20
MOST_ITERATIONS = 20_000
#: Multiplications of a simplex iteration, per entry of the programme.
PER_ENTRY = 10.0

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Hints:
    """numbers [n, units]: as ``Domains.numbers`` has them; where nothing was found, as they were;
    points [n, inputs] float32: where the least value is attained; found [n] bool; work:
    multiplications, about."""

    numbers: Tensor
    points: Tensor
    found: Tensor
    work: float


class LinearProgramme:
    """The programme of a sample's condensed network, kept in the solver from domain to domain: a
    domain changes bounds alone, and begins where the one before it ended.

    Columns: inputs, units after the activation (a), units before it (z). Rows: z as the unit's
    function; then a below its upper line, above its steepest lower line, above its flattest one.
    These are the constraints whose duals ``DomainBounds`` has numbers for, no others: rounding,
    that of the deployed network too, is left to the proof.
    """

    def __init__(self, network: CondensedNetwork, region: Region) -> None:
        units, inputs, lines = network.count, network.inputs, network.lines
        self.network, self.units, self.inputs = network, units, inputs
        self.free, self.splits = _array(lines.free) > 0, _array(lines.splits) > 0
        self.most = np.where(self.free, 1.0, _array(lines.lower_slope))
        self.least = np.where(self.free, _array(lines.least_slope), self.most)
        #: Of an undecided unit: its rows' limits, and how far its columns may go.
        self.above, self.below = _array(lines.upper_intercept), _array(lines.lower_intercept)
        self.reach = 2.0 * _array(network.reach[inputs:]) + 1.0
        self.far = 2.0 * np.maximum(np.abs(_array(network.lower)), np.abs(_array(network.upper)))
        self.far = np.maximum(self.far + 1.0, self.reach)
        self.low, self.high = (_array(end).flatten() for end in region.box(torch.float64))
        self.weight, self.objectives = _array(network.units.weight), network.objectives.weight
        self.entries = int(np.count_nonzero(self.weight)) + 7 * units
        self.sides = np.zeros(units, dtype=np.int8)
        self.solver = _Highs()  # the class around it prints a banner where it is made
        for option, value in (
            ("output_flag", False),
            ("threads", 1),
            ("simplex_iteration_limit", MOST_ITERATIONS),
        ):
            self.solver.setOptionValue(option, value)
        self.usable = self.solver.passModel(self._model()) != highspy.HighsStatus.kError

    @classmethod
    def of(cls, network: CondensedNetwork, region: Region) -> LinearProgramme | None:
        """None: nothing to solve, too large, or beyond what a solver can take."""
        wide = network.inputs + network.count
        held = (
            *(network.units.weight, network.units.constant, network.objectives.weight),
            *(network.reach, network.lines.upper_intercept, *region.box(torch.float64)),
        )
        finite = all(bool(torch.isfinite(numbers).all()) for numbers in held)
        if not 0 < network.count * wide <= LARGEST or not finite:
            return None
        made = cls(network, region)
        return made if made.usable else None

    def solved(self, domains: Domains, clock: Clock = UNLIMITED) -> Hints:
        """Hints for each of the domains, one after the other. Raises OutOfTime."""
        numbers = domains.numbers.clone()
        points = torch.zeros(len(domains), self.inputs)
        found = torch.zeros(len(domains), dtype=torch.bool)
        iterations = 0
        for row in range(len(domains)):
            clock.check()
            sides = domains.sides[row].cpu().numpy()
            self._enter(sides, int(domains.objective[row]))
            solution, steps = self._run()
            iterations += steps + 1
            if solution is None:
                continue
            found[row] = True
            numbers[row] = torch.from_numpy(
                self._numbers(solution, sides, domains.numbers[row].double().cpu().numpy())
            ).to(numbers)
            value = np.asarray(solution.col_value[: self.inputs])
            points[row] = torch.from_numpy(value.clip(self.low, self.high)).float()
        work = PER_ENTRY * iterations * self.entries
        return Hints(numbers, points.to(numbers.device), found.to(numbers.device), work)

    # ---- the model ---------------------------------------------------------------------------

    def _model(self) -> highspy.HighsLp:
        units, inputs = self.units, self.inputs
        columns = inputs + 2 * units
        values, places, starts = [], [], [0]

        def add(value: Numbers, place: NDArray[np.intp]) -> None:
            kept = value != 0.0
            values.append(value[kept])
            places.append(place[kept])
            starts.append(starts[-1] + int(kept.sum()))

        after, before = inputs + np.arange(units), inputs + units + np.arange(units)
        for unit in range(units):
            row = np.append(self.weight[unit], -1.0)
            add(row, np.append(np.arange(inputs + units), before[unit]))
        chord = _array(self.network.lines.upper_slope)
        for slopes in (chord, self.most, self.least):
            for unit in range(units):
                add(np.array([1.0, -slopes[unit]]), np.array([after[unit], before[unit]]))
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = columns, 4 * units
        model.col_cost_ = np.zeros(columns)
        model.col_lower_ = np.concatenate([self.low, -self.reach, -self.far])
        model.col_upper_ = np.concatenate([self.high, self.reach, self.far])
        shift = -_array(self.network.units.constant)
        endless = np.full(units, np.inf)
        model.row_lower_ = np.concatenate([shift, -endless, self.below, self.below])
        model.row_upper_ = np.concatenate([shift, self.above, endless, endless])
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.array(starts, dtype=np.int32)
        model.a_matrix_.index_ = np.concatenate(places).astype(np.int32)
        model.a_matrix_.value_ = np.concatenate(values)
        return model

    def _enter(self, sides: NDArray[np.int8], objective: int) -> None:
        """Change what differs from the domain before. a = z on the upper side, a = 0 below."""
        units, inputs = self.units, self.inputs
        cost = _array(self.objectives[objective])
        self.solver.changeColsCost(len(cost), np.arange(len(cost), dtype=np.int32), cost)
        changed = np.flatnonzero(sides != self.sides).astype(np.int32)
        self.sides = sides.copy()
        if not len(changed):
            return
        side = sides[changed]
        on, off = side > 0, side < 0
        reach, far = self.reach[changed], self.far[changed]
        columns = np.concatenate([inputs + changed, inputs + units + changed])
        self.solver.changeColsBounds(
            len(columns),
            columns,
            np.concatenate([np.where(off, 0.0, -reach), np.where(on, 0.0, -far)]),
            np.concatenate([np.where(off, 0.0, reach), np.where(off, 0.0, far)]),
        )
        for unit in changed.tolist():
            below, above = self.below[unit], self.above[unit]
            on, off = sides[unit] > 0, sides[unit] < 0
            limits = (
                (-np.inf, np.inf if on or off else above),
                (0.0, 0.0) if on else (-np.inf if off else below, np.inf),
                (-np.inf if on or off else below, np.inf),
            )
            for number, (least, most) in enumerate(limits, 1):
                self.solver.changeRowBounds(number * units + unit, least, most)

    # ---- the answer --------------------------------------------------------------------------

    def _run(self) -> tuple[highspy.HighsSolution | None, int]:
        """(solution; None where there is no optimal one, simplex iterations)."""
        steps = 0
        for _ in range(2):
            self.solver.run()
            steps += max(0, self.solver.getInfo().simplex_iteration_count)
            status = self.solver.getModelStatus()
            if status == highspy.HighsModelStatus.kOptimal:
                solution = self.solver.getSolution()
                if solution.dual_valid and len(solution.col_dual) == self.inputs + 2 * self.units:
                    return solution, steps
            elif status == highspy.HighsModelStatus.kInfeasible:
                return None, steps
            # Once in a while a warm start ends without an answer.
            self.solver.clearSolver()
        log.debug("no answer of the linear programme: %s", status)
        return None, steps

    def _numbers(
        self, solution: highspy.HighsSolution, sides: NDArray[np.int8], known: Numbers
    ) -> Numbers:
        """The slope between its two lower lines that an undecided unit's duals stand for, and the
        multiplier of a decided one: the dual of the side itself."""
        units = self.units
        rows = np.asarray(solution.row_dual)
        steep = rows[2 * units : 3 * units].clip(0.0)
        flat = rows[3 * units :].clip(0.0)
        total = steep + flat
        share = steep / np.where(total > 0, total, 1.0)
        slopes = np.where(total > 0, self.least + share * (self.most - self.least), known)
        reduced = np.asarray(solution.col_dual[self.inputs + units :])
        multipliers = (reduced * sides).clip(0.0)
        return np.where(sides == 0, slopes, multipliers)


def _array(numbers: Tensor) -> Numbers:
    found: Numbers = numbers.flatten().double().cpu().numpy()
    return found.reshape(numbers.shape) if numbers.dim() > 1 else found
