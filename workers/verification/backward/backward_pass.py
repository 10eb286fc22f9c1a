"""Backward bound propagation: a linear function of any value, bounded below over the region.

Coefficients are carried from the value back to the input (CROWN, Zhang et al. 2018; with other
slopes CAP, Wong and Kolter 2018), through residual graphs as well. Each affine step may be off by
its local error |coefficients| . d, where d holds the rounding of the DEPLOYED float32 step and of
this pass itself, so that the result bounds what the deployed network computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.layers.base import Layer
from workers.verification.backward.adjoint import adjoint, has_adjoint, local_error
from workers.verification.backward.concretization import Concretization
from workers.verification.backward.linear_form import LinearForm
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.enclosure import Enclosure
from workers.verification.forward.propagation import has_forward_rule
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.graph_step import GraphStep, UnsupportedLayer
from workers.verification.layers.registry import rules_of
from workers.verification.layers.rules import Carried, LinearRelaxation, nothing
from workers.verification.numerics import (
    LONGEST_SUM,
    ROOM,
    SUM_ROUNDINGS,
    lost_in_coefficients,
    lost_in_sums,
    magnitude,
    product_magnitude,
    quick_total,
    raised,
    rounding_error,
    slack,
    sum_error,
)
from workers.verification.region import Region
from workers.verification.rounding import Rounding, unit_roundoff

__all__ = ["BackwardPass", "LowerSlopes", "has_backward_rule"]

#: (index of the step, rows on its result, its relaxation) -> slopes that broadcast to the rows.
LowerSlopes = Callable[[int, LinearForm, LinearRelaxation], Tensor]


@dataclass
class BackwardPass:
    """Everything a backward pass needs: network, region, boxes and relaxations.

    values: enclosures as ``propagate`` keeps them (value 0 is the input). slopes: the rule for the
    lower slope of unstable neurons, ``crown`` or ``cap``. rounds: of the box-and-ball search.
    windows: what ``PatchGrid`` keeps for the next rows. clock: looked at before every step of a
    pass. paid: about what the rows of the last pass have lost by rounding, the deployed network's
    and this one's, [rows] float64; slack: the same of the margins [batch] (``final_forms``). Both
    only say where a tighter arithmetic may help.
    """

    compiled: CompiledNetwork
    region: Region
    values: list[Enclosure | None]
    rounding: Rounding
    dtype: torch.dtype
    slopes: str = "crown"
    rounds: int = 2
    made: dict[int, Any] = field(default_factory=dict)
    windows: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)
    clock: Clock = UNLIMITED
    paid: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    slack: Tensor | None = None
    _relaxations: dict[int, LinearRelaxation] = field(default_factory=dict)
    _errors: dict[int, Tensor] = field(default_factory=dict)
    _sizes: dict[int, Tensor] = field(default_factory=dict)
    _lost: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    _shares: dict[tuple[int, float], Tensor] = field(default_factory=dict)
    _concretization: Concretization | None = None

    def over(self, region: Region, values: list[Enclosure | None]) -> BackwardPass:
        """A pass of the same arithmetic, rules and clock over another region and its boxes."""
        same = (self.rounding, self.dtype, self.slopes, self.rounds)
        return BackwardPass(self.compiled, region, values, *same, clock=self.clock)

    def box(self, value: int) -> tuple[Tensor, Tensor]:
        """Elementwise bounds of a value, [batch, *shape] each."""
        enclosure = self.values[value]
        assert enclosure is not None
        assert enclosure.lower is not None
        assert enclosure.upper is not None
        return enclosure.lower, enclosure.upper

    def relaxation(self, index: int) -> LinearRelaxation:
        """Lines below and above the activation of step ``index`` over its input's box."""
        if index not in self._relaxations:
            step = self.compiled.steps[index]
            relax = rules_of(step.op).relax
            if relax is None:
                raise UnsupportedLayer(f"no rule has lines around the step {step.name}")
            lower, upper = self.box(step.sources[0])
            self._relaxations[index] = relax(step.op, lower, upper, self.slopes, self.rounding)
        return self._relaxations[index]

    def error(self, index: int) -> Tensor | None:
        """Local error of the affine step ``index``; None where rounding is ignored."""
        if not self.rounding.is_sound:
            return None
        if index not in self._errors:
            step = self.compiled.steps[index]
            op = step.affine
            error = local_error(op, *self.box(step.sources[0]), self.rounding)
            # Of the sum of coefficients times biases.
            bias = op.bound_like("bias_magnitude", error)
            self._errors[index] = error + bias * ((SUM_ROUNDINGS + 2) * unit_roundoff(self.dtype))
        return self._errors[index]

    def lower_bound(
        self, value: int, rows: LinearForm, *, slopes: LowerSlopes | None = None
    ) -> Tensor:
        """Lower bounds [rows] float64 of rows . value over the region.

        slopes: chooses the lower slopes of unstable neurons per row; None: the relaxations' own.
        Raises OutOfTime.
        """
        pending = {value: rows}
        constant = torch.zeros(rows.coefficients.shape[0], dtype=torch.float64)
        constant = constant.to(rows.coefficients.device)
        size, paid = torch.zeros_like(constant), torch.zeros_like(constant)
        for index in range(value - 1, -1, -1):
            carried = pending.pop(index + 1, None)
            if carried is None:
                continue
            self.clock.check()
            step = self.compiled.steps[index]
            sources, gained, held = self.through(index, step, carried, slopes)
            constant = constant + gained - carried.of_samples(self.lost(step))
            size = size + held
            if isinstance(step.op, Affine):
                paid = paid + held.detach()
            for source, contribution in zip(step.sources, sources, strict=True):
                known = pending.get(source)
                if known is not None:
                    contribution = known.plus(contribution)
                    lost = self.rounded(source, contribution)
                    constant, size = constant - lost, size + lost
                pending[source] = contribution
        result = constant
        if 0 in pending:
            result = result + self.over_region().least(pending[0])
            paid = paid + self.over_region().lost
        self.paid = paid
        if self.rounding.is_sound:
            result = result - sum_error(LONGEST_SUM) * size
        # Only a product that overflowed here is infinite: it says nothing.
        return torch.where(torch.isposinf(result), -torch.inf, result)

    def over_region(self) -> Concretization:
        """Least values of rows on the input itself."""
        if self._concretization is None:
            lower, upper = self.box(0)
            self._concretization = Concretization(
                self.region, lower, upper, self.rounding, self.dtype, self.rounds
            )
        return self._concretization

    def lost(self, step: GraphStep) -> Tensor:
        """What underflow may change in a step, [batch]: in coefficients, a tiny share of the
        inputs; in products of coefficients with what the constant gains, a tiny number.
        """
        if step.sources in self._lost:
            return self._lost[step.sources]
        tiny = lost_in_coefficients(self.dtype)
        lost = torch.zeros(len(self.region.x), dtype=torch.float64, device=self.region.x.device)
        if not self.rounding.is_sound:
            return lost
        for source in step.sources:
            if source not in self._sizes:
                lower, upper = self.box(source)
                reach = torch.maximum(lower.abs(), upper.abs()).flatten(1)
                self._sizes[source] = reach.sum(1, dtype=torch.float64)
            lost = lost + self._sizes[source] * tiny
        self._lost[step.sources] = lost + lost_in_sums(self.dtype)
        return self._lost[step.sources]

    def through(
        self, index: int, step: GraphStep, rows: LinearForm, slopes: LowerSlopes | None
    ) -> Carried:
        """Coefficients on the step's inputs, and what the constant gains (with its magnitude)."""
        op = step.op
        if isinstance(op, Affine):
            error = self.error(index)
            gained = quick_total(
                rows.coefficients * rows.pick_constant(op.bias_like(rows.coefficients))
            )
            size = nothing(rows)
            if error is not None:
                size = product_magnitude(rows.coefficients, rows.pick(error))
                gained = gained - rounding_error(size)
            return [adjoint(op, rows)], gained, size
        rules = rules_of(op)
        if rules.relax is not None:
            return self._activation(index, rows, slopes)
        if rules.backward is None:
            raise UnsupportedLayer(f"no rule carries rows back through {op.kind!r} ({step.name})")
        return rules.backward(self, index, step, rows)

    def shape_of(self, value: int) -> tuple[int, ...]:
        """Shape of a value, without the batch."""
        return self.compiled.input_shape if value == 0 else self.compiled.steps[value - 1].shape

    def _activation(self, index: int, rows: LinearForm, slopes: LowerSlopes | None) -> Carried:
        relaxation = self.relaxation(index)
        positive = rows.coefficients.clamp_min(0.0)
        if positive.requires_grad:
            negative = rows.coefficients - positive
        else:
            negative = rows.coefficients.clamp_max(0.0)
        if slopes is None:
            lower_slope = rows.pick(relaxation.lower_slope)
        else:
            lower_slope = slopes(index, rows, relaxation)
        parts = negative * rows.pick(relaxation.upper_intercept)
        if relaxation.lower_intercept is not None:
            parts = parts + positive * rows.pick(relaxation.lower_intercept)
            gained, size = quick_total(parts), magnitude(parts)
        else:
            # Lines above have intercepts >= 0: the sum is its own magnitude.
            gained = quick_total(parts)
            size = raised(-gained, 2 * SUM_ROUNDINGS, self.dtype)
        upper_slope = rows.pick(relaxation.upper_slope)
        if positive.requires_grad or lower_slope.requires_grad:
            carried = torch.addcmul(positive * lower_slope, negative, upper_slope)
        else:
            carried = positive.mul_(lower_slope).addcmul_(negative, upper_slope)
        # One of the two products is 0; the other was rounded, the sum is float64's.
        unit = (64 + SUM_ROUNDINGS) * unit_roundoff(self.dtype) * self.rounding.is_sound
        gained = gained - size * unit
        result = rows.with_coefficients(carried)
        source = self.compiled.steps[index].sources[0]
        producer = None if source == 0 else self.compiled.steps[source - 1].op
        if producer is None or not (
            isinstance(producer, Affine) or rules_of(producer).absorbs_rounding
        ):
            # Their own local errors cover the rounding of the products above; others have none.
            gained = gained - self.rounded(source, result)
        return [result], gained, size + gained.abs()

    def rounded(self, value: int, rows: LinearForm) -> Tensor:
        """What two roundings of each coefficient may change in rows . value, [rows]."""
        if not self.rounding.is_sound:
            return nothing(rows)
        share = self.share_of(value, 4 * unit_roundoff(self.dtype))
        return product_magnitude(rows.coefficients, rows.pick(share))

    def share_of(self, value: int, share: float) -> Tensor:
        """This share of a value's largest magnitude, made once: rows keep what they pick of it."""
        if (value, share) not in self._shares:
            lower, upper = self.box(value)
            self._shares[value, share] = slack(
                torch.maximum(lower.abs(), upper.abs()), share * ROOM, self.rounding
            )
        return self._shares[value, share]


def has_backward_rule(op: Affine | Layer) -> bool:
    """Whether ``BackwardPass`` covers the step, the boxes that it needs included."""
    if isinstance(op, Affine):
        return has_adjoint(op)
    rules = rules_of(op)
    return has_forward_rule(op) and (rules.relax is not None or rules.backward is not None)
