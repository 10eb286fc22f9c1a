"""Backward propagation of a linear function less a multiple of the squared distance: ball and box.

A row carries coefficients c and a number q >= 0 on a value z; what is bounded is at least
constant + c . dz - q / 2 |dz|^2 at every input of the region, where dz = z' - zc is how far the
deployed value is from the centre's. Chained quadratic bound; for D and Lambda multiples of the
identity (SDP-CROWN, Chiu et al., ICML 2025, pays for every ball apart instead). With q = 0 and
CROWN's slopes it is CROWN.

How a step carries the pair (c, q) on its result to its input, each from below:

* affine map, dz' = W dz + e, |e| <= d elementwise (roundings of both evaluations): W^T c, less
  |c| . d; and q |W dz + e|^2 <= q (1 + t) |W|^2 |dz|^2 + q (1 + 1/t) |d|^2 for every t > 0, with
  the proved norm of W;
* elementwise layer of two lines: for ANY coefficients g and any own >= 0,
  c . dr - q / 2 |dr|^2 >= sum_i min { c dr - q / 2 dr^2 - g dz + (own + q) / 2 dz^2 }
  + g . dz - (own + q) / 2 |dz|^2, the minimum over the box of each neuron
  (``coordinate_minimum``): the pair goes on as (g, own + q);
* any other layer: its linear relaxation for c, its ball rule for q: |dr| <= L |dz| + o;
* a value that several steps read: the pairs are added.

At the input |dx| is at most the region's radius. Boxes, radii and centres are those of a
``BackwardPass``, whose rounding and arithmetic it shares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.layers.base import Layer
from workers.verification.backward.adjoint import adjoint, fan_out
from workers.verification.backward.backward_pass import BackwardPass, has_backward_rule
from workers.verification.backward.coordinate_minimum import Cells, least_value, reach_of
from workers.verification.backward.input_ball import InputBall
from workers.verification.backward.intermediate_bounds import from_input
from workers.verification.backward.linear_form import LinearForm
from workers.verification.forward.ball import ball_rule, has_ball_rule, joins_by_sum
from workers.verification.graph.affine import Affine
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.registry import rules_of
from workers.verification.numerics import (
    LONGEST_SUM,
    euclidean_norm,
    floor,
    lost_in_coefficients,
    lost_in_sums,
    magnitude,
    nonzero,
    per_sample,
    raised,
    rough_norm,
    rounded_up,
    rounding_error,
    slack,
    sum_error,
    total,
)
from workers.verification.rounding import unit_roundoff

__all__ = ["Choose", "QuadraticPass", "has_quadratic_rule"]

#: (index of the step, rows on its result) -> (g in the form of the rows, own [rows, columns]), both
#: in the rows' dtype.
Choose = Callable[[int, LinearForm], tuple[Tensor, Tensor]]


@dataclass
class _Pending:
    """rows: the linear part; square [rows, columns] float64: q."""

    rows: LinearForm
    square: Tensor


@dataclass
class QuadraticPass:
    """backward: network, region, boxes, rounding and arithmetic; its centres are the values of the
    network at the samples, each computed from the one before in this arithmetic."""

    backward: BackwardPass
    _cells: dict[int, tuple[Cells, Tensor | None]] = field(default_factory=dict)
    _errors: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _reaches: dict[int, Tensor] = field(default_factory=dict)

    def lower_bound(
        self,
        value: int,
        rows: LinearForm,
        choose: Choose,
        columns: int = 1,
        end: InputBall | None = None,
    ) -> Tensor:
        """Lower bounds [rows, columns] float64 of rows . value over the region: ``fall`` and the
        value at the centre."""
        return self.at_centre(value, rows)[:, None] + self.fall(
            value, rows, choose, columns, end=end
        )

    def at_centre(self, value: int, rows: LinearForm) -> Tensor:
        """Lower bounds [rows] float64 of rows . the centre of the value."""
        flat = rows.coefficients.flatten(1)
        centre = self._centre(value)
        picked = rows.pick(centre).flatten(1)
        at_centre = total(flat * picked)
        if self.backward.rounding.is_sound:
            share = 4 * unit_roundoff(flat.dtype) + sum_error(flat.shape[1])
            size = magnitude(flat * picked)
            at_centre = at_centre - rounding_error(size, share) - lost_in_sums(flat.dtype)
        return at_centre

    def fall(
        self,
        value: int,
        rows: LinearForm,
        choose: Choose,
        columns: int = 1,
        cells: dict[int, Cells] | None = None,
        end: InputBall | None = None,
    ) -> Tensor:
        """Lower bounds [rows, columns] float64 of rows . (value - its centre) over the region.

        choose: coefficients below every layer of two lines, and its own multipliers, for several
        choices of these at once. cells: kept there for the next call with the same rows. end: for
        one column, the first map's own term at the input too, where all rows go through one.
        Raises OutOfTime.
        """
        backward, count = self.backward, len(rows.coefficients)
        device = rows.coefficients.device
        zero = torch.zeros(count, columns, dtype=torch.float64, device=device)
        pending = {value: _Pending(rows, zero)}
        constant, size = zero, zero
        kept: dict[int, Cells] = {} if cells is None else cells
        ended: tuple[Tensor, Tensor] | None = None
        for index in range(value - 1, -1, -1):
            carried = pending.pop(index + 1, None)
            if carried is None:
                continue
            backward.clock.check()
            step = backward.compiled.steps[index]
            if isinstance(step.op, Affine):
                parts, gained, held = self._affine(index, step, carried)
            elif rules_of(step.op).two_lines is not None:
                parts, gained, held = self._two_lines(index, step, carried, choose, kept)
            else:
                parts, gained, held = self._other(index, step, carried)
            constant, size = constant + gained, size + held
            if backward.rounding.is_sound:
                constant = constant - carried.rows.of_samples(self._lost(step))[:, None]
            if end is not None and not pending and self._leaves_input(index):
                form = parts[0].rows.dense()
                # (1 + t) q, of which the square is |W|^2 times as much.
                k = parts[0].square[:, 0] / step.norms.spectral**2
                radius = form.of_samples(self._start_radius()).expand(count)
                ended = constant, end.least(step, form, k, radius, backward.rounding)[:, None]
            for source, part in zip(step.sources, parts, strict=True):
                known = pending.get(source)
                if known is not None:
                    merged = known.rows.plus(part.rows)
                    square = raised(known.square + part.square, 1)
                    constant = constant - self._rounded(source, merged)[:, None]
                    part = _Pending(merged, square)
                pending[source] = part
        if 0 in pending:
            last = pending[0]
            radius = last.rows.of_samples(self._start_radius())
            drop = backward.over_region().fall(last.rows)[:, None]
            ball = raised(0.5 * last.square * radius.square()[:, None], 4)
            constant, size = constant - drop - ball, size + drop.detach() + ball.detach()
        if ended is not None:
            exact = ended[0] + ended[1]
            # Where it is climbed it is climbed alone: at first it may be the lower one.
            constant = exact if exact.requires_grad else torch.fmax(constant, exact)
            size = size + ended[1].detach().abs().nan_to_num(0.0, 0.0, 0.0)
        if backward.rounding.is_sound:
            constant = constant - sum_error(LONGEST_SUM) * size
        # Only what overflowed here is infinite: it says nothing.
        return torch.where(torch.isposinf(constant), -torch.inf, constant)

    def _leaves_input(self, index: int) -> bool:
        """Whether this step alone is an affine map on the input, rearrangements apart."""
        op = from_input(self.backward.compiled, index + 1)
        step = self.backward.compiled.steps[index]
        return op is not None and op is step.op and step.norms.spectral > 0.0

    def _start_radius(self) -> Tensor:
        """Euclidean radius of the region, [batch] float64."""
        return self.backward.region.radius(*self.backward.box(0))

    def _affine(
        self, index: int, step: GraphStep, carried: _Pending
    ) -> tuple[list[_Pending], Tensor, Tensor]:
        rows, square = carried.rows, carried.square
        spectral = step.norms.spectral
        through = adjoint(step.affine, rows)
        if not self.backward.rounding.is_sound:
            return [_Pending(through, square * spectral**2)], _nothing(square), _nothing(square)
        error, radius = self._error(index, step)
        linear = rounding_error(magnitude(rows.coefficients * rows.pick(error)))
        # (1 + t) N^2 and (1 + 1/t) |d|^2 with t = |d| / move: the least where move is N |dz|.
        if rows.is_patch:
            length = euclidean_norm(rows.pick(error))
        else:
            length = rows.of_samples(euclidean_norm(error)).expand(len(square))
        move = nonzero(torch.maximum(rows.of_samples(radius) * spectral, length))
        grown = raised(square * (spectral**2 * (1.0 + length / move))[:, None])
        lost = raised(0.5 * square * (length * (length + move))[:, None])
        gained = -linear[:, None] - lost
        return [_Pending(through, grown)], gained, -gained

    def _two_lines(
        self,
        index: int,
        step: GraphStep,
        carried: _Pending,
        choose: Choose,
        kept: dict[int, Cells],
    ) -> tuple[list[_Pending], Tensor, Tensor]:
        rows, square, rounding = carried.rows, carried.square, self.backward.rounding
        cells, error = self._cells_of(index, step)
        gained = _nothing(square)
        if error is not None and rounding.is_sound:
            linear = rounding_error(magnitude(rows.coefficients * rows.pick(error)))
            length = rows.of_samples(euclidean_norm(error)).expand(len(square))
            move = nonzero(rows.of_samples(self.radius(index + 1)))
            gained = -linear[:, None] - raised(0.5 * square * (length * (length + move))[:, None])
            square = raised(square * (1.0 + length / move)[:, None])
        if index not in kept:
            kept[index] = cells.picked(rows)
        given = rows.coefficients
        slopes, own = choose(index, rows)
        held = square.to(given.dtype)
        if rounding.is_sound:
            held = rounded_up(square, given.dtype)
        least, size = least_value(kept[index], given, slopes, own, held, rounding)
        onward = raised(own.to(torch.float64) + held.to(torch.float64), 1)
        part = _Pending(rows.with_coefficients(slopes), onward)
        return [part], gained + least, size - gained

    def _other(
        self, index: int, step: GraphStep, carried: _Pending
    ) -> tuple[list[_Pending], Tensor, Tensor]:
        """By the layer's relaxation and its ball rule: c . r' >= sum of c_s . z_s' + gained, and
        |dr| <= L J + o, J the sum or the root of the squares of the |dz_s|."""
        backward, rows, square = self.backward, carried.rows, carried.square
        sources, gained, size = backward.through(index, step, rows, None)
        rules = rules_of(step.op)
        if not rules.permutes:
            # From values to distances: at the centre both sides are known numbers.
            moved, held = self._at_centre(index + 1, rows)
            gained, size = gained - moved, size + held
            for source, part in zip(step.sources, sources, strict=True):
                moved, held = self._at_centre(source, part)
                gained, size = gained + moved, size + held
                if rules.relax is not None:
                    gained = gained - backward.rounded(source, part)
        gained, size = gained.expand(len(square)), size.expand(len(square))
        centres = torch.stack([rough_norm(self._centre(s)) for s in step.sources]).sum(0)
        factor, offset = ball_rule(step, centres, backward.rounding)
        radii = [self.radius(source) for source in step.sources]
        joined = torch.stack(radii).sum(0)
        length = torch.zeros_like(joined, dtype=torch.float64) + offset
        move = nonzero(torch.maximum(joined * factor, length))
        grown = raised(factor**2 * (1.0 + length / move))
        lost = raised(0.5 * length * (length + move))
        constant = gained[:, None] - rows.of_samples(lost)[:, None] * square
        # (a + b)^2 <= (1 + b/a) a^2 + (1 + a/b) b^2, any weights a, b > 0.
        parts = []
        for radius, form in zip(radii, sources, strict=True):
            share = grown
            if len(radii) > 1 and joins_by_sum(step):
                share = raised(grown * joined / nonzero(radius))
            parts.append(_Pending(form, raised(square * rows.of_samples(share)[:, None], 2)))
        return parts, constant, size[:, None] + (gained[:, None] - constant)

    def _at_centre(self, value: int, rows: LinearForm) -> tuple[Tensor, Tensor]:
        """rows . centre of the value, less nothing; and a magnitude that holds its rounding."""
        products = rows.coefficients * rows.pick(self._centre(value))
        share = 2 * unit_roundoff(products.dtype) / sum_error(LONGEST_SUM)
        size = magnitude(products)
        return total(products), size * max(2.0, 2.0 * share)

    def _centre(self, value: int) -> Tensor:
        state = self.backward.values[value]
        if state is None:
            raise ValueError(f"the value {value} is not kept")
        return state.centre

    def _ball(self, value: int) -> Tensor:
        """How far a value is from its centre in the Euclidean norm, [batch] float64."""
        state = self.backward.values[value]
        if state is None:
            raise ValueError(f"the value {value} is not kept")
        return state.radius

    def radius(self, value: int) -> Tensor:
        """The same, where it is a weight: never 0, never infinite."""
        corner = rough_norm(self._reach(value))
        return torch.minimum(self._ball(value), corner).clamp(1e-100, 1e100)

    def _reach(self, value: int) -> Tensor:
        """|value - centre| elementwise, [batch, *shape], rounded up."""
        if value not in self._reaches:
            low, high = reach_of(
                self.backward.box(value), self._centre(value), self.backward.rounding
            )
            self._reaches[value] = torch.maximum(low.abs(), high.abs())
        return self._reaches[value]

    def _rounded(self, value: int, rows: LinearForm) -> Tensor:
        """What two roundings of each coefficient may change in rows . dz, [rows]."""
        if not self.backward.rounding.is_sound:
            found = rows.coefficients
            return torch.zeros(len(found), dtype=torch.float64, device=found.device)
        unit = unit_roundoff(self.backward.dtype)
        share = slack(self._reach(value), 4 * unit, self.backward.rounding)
        return rounding_error(magnitude(rows.coefficients * rows.pick(share)))

    def _lost(self, step: GraphStep) -> Tensor:
        """What underflow may change in the coefficients of a step, and in its sums, [batch]."""
        dtype = self.backward.dtype
        reach = torch.stack([total(self._reach(source)) for source in step.sources]).sum(0)
        return raised(reach * lost_in_coefficients(dtype)) + lost_in_sums(dtype)

    def _cells_of(self, index: int, step: GraphStep) -> tuple[Cells, Tensor | None]:
        if index not in self._cells:
            rule = rules_of(step.op).two_lines
            if rule is None:
                raise ValueError(f"the step {step.name} has no two lines")
            box = self.backward.box(step.sources[0])
            lines = rule(step.op, *box, self.backward.rounding)
            centre = self._centre(step.sources[0])
            self._cells[index] = Cells.of(lines, box, centre, self.backward.rounding), lines.error
        return self._cells[index]

    def _error(self, index: int, step: GraphStep) -> tuple[Tensor, Tensor]:
        """(d [batch, *shape], radius [batch] of the step's input).

        d: how far dz' may be from W dz, where dz is within box and ball. Deployed rounding on
        values of the region, this arithmetic's on the centre, and that of one backward step, a sum
        over the outputs that an input enters, on dz alone (Higham 2002, section 3.1). The ball
        bounds |W| |dz| by the norms of W's rows, which for many inputs is far below the box.
        """
        if index not in self._errors:
            op, rounding = step.affine, self.backward.rounding
            (source,) = step.sources
            lower, upper = self.backward.box(source)
            deployed, own = rounding.deployed_gamma(op.terms), rounding.own_gamma(op.own_terms)
            back = rounding.own_gamma(max(op.own_terms, fan_out(op)))
            size = torch.maximum(lower.abs(), upper.abs()) * deployed
            size = size + self._centre(source).abs() * own + self._reach(source) * back
            boxed = op.absolute(size + floor(size.dtype, rounding))
            centre = op.absolute(self._centre(source).abs() * (deployed + own))
            ball = per_sample(self._ball(source) * (deployed + back), centre)
            lost = rounding.underflow * op.floor
            reach = torch.fmin(boxed, centre + op.row_norms_like(centre) * ball + lost)
            reach = reach + op.bound_like("bias_magnitude", reach) * (deployed + own)
            error = rounding_error(reach, terms=op.own_terms + 8) + lost
            self._errors[index] = error, self.radius(source)
        return self._errors[index]


def _nothing(square: Tensor) -> Tensor:
    return torch.zeros_like(square)


def has_quadratic_rule(op: Affine | Layer) -> bool:
    """Whether ``QuadraticPass`` covers the step, the boxes and balls that it needs included."""
    return has_backward_rule(op) and has_ball_rule(op)
