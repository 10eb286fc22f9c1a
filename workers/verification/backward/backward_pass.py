"""Backward bound propagation: a linear function of any value, bounded below over the region.

Coefficients are carried from the value back to the input (CROWN, Zhang et al. 2018; with other
slopes CAP, Wong and Kolter 2018), through residual graphs as well. Each affine step may be off by
its local error |coefficients| . d, where d holds the rounding of the DEPLOYED float32 step and of
this pass itself, so that the result bounds what the deployed network computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.kinds import Add, Layer, MaxPool2d, Pad, Permute, Reshape
from workers.verification.backward.adjoint import adjoint, has_adjoint, local_error
from workers.verification.backward.join_rules import JOINS
from workers.verification.backward.linear_form import LinearForm
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.forward.box_ball import quick_maximum
from workers.verification.forward.propagation import Enclosure, has_forward_rule
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork, GraphStep, UnsupportedLayer
from workers.verification.layers.planes import Planes
from workers.verification.layers.relaxation import RELAXATIONS, LinearRelaxation
from workers.verification.numerics import (
    SUM_ROUNDINGS,
    euclidean_norm,
    least,
    lost_in_norm,
    lost_in_sums,
    magnitude,
    quick_total,
    rounded_down,
    rounded_up,
    slack,
    total,
)
from workers.verification.region import Region
from workers.verification.rounding import Rounding, unit_roundoff

__all__ = ["BACKWARD", "BackwardPass", "LowerSlopes", "has_backward_rule"]

#: (index of the step, rows on its result, its envelope) -> slopes that broadcast to the rows.
LowerSlopes = Callable[[int, LinearForm, LinearRelaxation], Tensor]


@dataclass
class BackwardPass:
    """Everything a backward pass needs: the program, the region, boxes of all values, envelopes.

    values: enclosures as ``propagate`` keeps them (value 0 is the input). slopes: the rule for the
    lower slope of unstable neurons, ``crown`` or ``cap``. rounds: of the box-and-ball search.
    windows: what ``PatchGrid`` keeps for the next rows. clock: looked at before every step of a
    pass.
    """

    compiled: CompiledNetwork
    region: Region
    values: list[Enclosure | None]
    rounding: Rounding
    dtype: torch.dtype
    slopes: str = "crown"
    rounds: int = 2
    planes: dict[int, Planes] = field(default_factory=dict)
    windows: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)
    clock: Clock = UNLIMITED
    _relaxations: dict[int, LinearRelaxation] = field(default_factory=dict)
    _errors: dict[int, Tensor] = field(default_factory=dict)
    _sizes: dict[int, Tensor] = field(default_factory=dict)
    _shares: dict[tuple[int, float], Tensor] = field(default_factory=dict)
    _centres: dict[torch.dtype, Tensor] = field(default_factory=dict)
    _offsets: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None = None

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
            assert isinstance(step.op, Layer)
            lower, upper = self.box(step.sources[0])
            relax = RELAXATIONS[type(step.op)]
            self._relaxations[index] = relax(step.op, lower, upper, self.slopes, self.rounding)
        return self._relaxations[index]

    def error(self, index: int) -> Tensor | None:
        """Local error of the affine step ``index``; None where rounding is ignored."""
        if not self.rounding.is_sound:
            return None
        if index not in self._errors:
            step = self.compiled.steps[index]
            assert isinstance(step.op, Affine)
            error = local_error(step.op, *self.box(step.sources[0]), self.rounding)
            # Of the sum of coefficients times biases.
            bias = step.op.bound_like("bias_magnitude", error)
            self._errors[index] = error + bias * ((SUM_ROUNDINGS + 2) * unit_roundoff(self.dtype))
        return self._errors[index]

    def lower_bound(
        self, value: int, rows: LinearForm, *, slopes: LowerSlopes | None = None
    ) -> Tensor:
        """Lower bounds [rows] float64 of rows . value over the region.

        slopes: chooses the lower slopes of unstable neurons per row; None: those of the envelopes.
        Raises OutOfTime.
        """
        pending = {value: rows}
        constant = torch.zeros(rows.coefficients.shape[0], dtype=torch.float64)
        constant = constant.to(rows.coefficients.device)
        size = torch.zeros_like(constant)
        for index in range(value - 1, -1, -1):
            carried = pending.pop(index + 1, None)
            if carried is None:
                continue
            self.clock.check()
            step = self.compiled.steps[index]
            sources, gained, held = self._through(index, step, carried, slopes)
            constant = constant + gained - _of_rows(self._lost(step), carried)
            size = size + held
            for source, contribution in zip(step.sources, sources, strict=True):
                known = pending.get(source)
                if known is not None:
                    contribution = known.plus(contribution)
                    size = size + self.rounded(source, contribution) * 2.0**32
                pending[source] = contribution
        result = constant
        if 0 in pending:
            result = result + self._concretize(pending[0])
        # Sums of at most a few hundred thousand float64 numbers of this total size.
        share = 2.0**-32 if self.rounding.is_sound else 0.0
        result = result - share * size
        # Only a product that overflowed here is infinite: it says nothing.
        return torch.where(torch.isposinf(result), -torch.inf, result)

    def _lost(self, step: GraphStep) -> Tensor:
        """What underflow may change in a step, [batch]: in coefficients, a tiny share of the
        inputs; in products of coefficients with what the constant gains, a tiny number.
        """
        tiny = 2.0**16 * least(self.dtype)
        lost = torch.zeros(len(self.region.x), dtype=torch.float64, device=self.region.x.device)
        if not self.rounding.is_sound:
            return lost
        for source in step.sources:
            if source not in self._sizes:
                lower, upper = self.box(source)
                reach = torch.maximum(lower.abs(), upper.abs()).flatten(1)
                self._sizes[source] = reach.sum(1, dtype=torch.float64)
            lost = lost + self._sizes[source] * tiny
        return lost + lost_in_sums(self.dtype)

    def _through(
        self, index: int, step: GraphStep, rows: LinearForm, slopes: LowerSlopes | None
    ) -> tuple[list[LinearForm], Tensor, Tensor]:
        """Coefficients on the step's inputs, and what the constant gains (with its magnitude)."""
        op = step.op
        zero = torch.zeros((), dtype=torch.float64, device=rows.coefficients.device)
        if isinstance(op, Affine):
            error = self.error(index)
            gained = quick_total(
                rows.coefficients * rows.pick_constant(op.bias_like(rows.coefficients))
            )
            size = zero
            if error is not None:
                size = magnitude(rows.coefficients * rows.pick(error))
                gained = gained - size * 1.001
            return [adjoint(op, rows)], gained, size
        if type(op) in RELAXATIONS:
            return self._activation(index, rows, slopes)
        if type(op) not in BACKWARD:
            raise UnsupportedLayer(f"no rule carries rows back through {op.kind!r} ({step.name})")
        return BACKWARD[type(op)](self, index, step, rows)

    def shape_of(self, value: int) -> tuple[int, ...]:
        """Shape of a value, without the batch."""
        return self.compiled.input_shape if value == 0 else self.compiled.steps[value - 1].shape

    def _activation(
        self, index: int, rows: LinearForm, slopes: LowerSlopes | None
    ) -> tuple[list[LinearForm], Tensor, Tensor]:
        relaxation = self.relaxation(index)
        positive = rows.coefficients.clamp_min(0.0)
        negative = rows.coefficients - positive
        if slopes is None:
            lower_slope = rows.pick(relaxation.lower_slope)
        else:
            lower_slope = slopes(index, rows, relaxation)
        parts = negative * rows.pick(relaxation.upper_intercept)
        if relaxation.lower_intercept is not None:
            parts = parts + positive * rows.pick(relaxation.lower_intercept)
        gained, size = quick_total(parts), magnitude(parts)
        carried = torch.addcmul(positive * lower_slope, negative, rows.pick(relaxation.upper_slope))
        # One of the two products is 0; the other was rounded, the sum is float64's.
        unit = (64 + SUM_ROUNDINGS) * unit_roundoff(self.dtype) * self.rounding.is_sound
        gained = gained - size * unit
        result = rows.with_coefficients(carried)
        source = self.compiled.steps[index].sources[0]
        producer = None if source == 0 else self.compiled.steps[source - 1].op
        if not isinstance(producer, Affine | Add):
            # Their own local errors cover the rounding of the products above; others have none.
            gained = gained - self.rounded(source, result)
        return [result], gained, size + gained.abs()

    def rounded(self, value: int, rows: LinearForm) -> Tensor:
        """What two roundings of each coefficient may change in rows . value, [rows]."""
        if not self.rounding.is_sound:
            return torch.zeros((), dtype=torch.float64, device=rows.coefficients.device)
        return magnitude(
            rows.coefficients * rows.pick(self._share_of(value, 4 * unit_roundoff(self.dtype)))
        )

    def _share_of(self, value: int, share: float) -> Tensor:
        """This share of a value's largest magnitude, made once: rows keep what they pick of it."""
        if (value, share) not in self._shares:
            lower, upper = self.box(value)
            self._shares[value, share] = slack(
                torch.maximum(lower.abs(), upper.abs()), share * 1.01, self.rounding
            )
        return self._shares[value, share]

    def _max_pool(
        self, step: GraphStep, op: MaxPool2d, rows: LinearForm
    ) -> tuple[list[LinearForm], Tensor, Tensor]:
        """max >= the input with the highest lower bound; max <= that input, or the highest upper
        bound where another input may exceed it."""
        source = self.shape_of(step.sources[0])
        lower, upper = self.box(step.sources[0])
        top, left, bottom, right = op.padding
        frame = (left, right, top, bottom)
        padded_lower = F.pad(lower, frame, value=-torch.inf)
        padded_upper = F.pad(upper, frame, value=-torch.inf)
        best, place = F.max_pool2d(
            padded_lower, op.kernel, op.stride, 0, op.dilation, return_indices=True
        )
        highest = F.max_pool2d(padded_upper, op.kernel, op.stride, 0, op.dilation)
        # Each window without its own winner: overlapping windows share inputs, not winners.
        members = _window_members(op, padded_upper.shape[3], tuple(place.shape[2:])).to(
            place.device
        )
        windows = padded_upper.flatten(2)[:, :, members]
        rest = windows.masked_fill(members == place[..., None], -torch.inf).amax(-1)
        dominated = best >= rest
        positive = rows.coefficients.clamp_min(0.0)
        negative = rows.coefficients - positive
        zero = torch.zeros_like(highest)
        gained = total(negative * rows.pick(torch.where(dominated, zero, highest)))
        keep = rows.pick(dominated.to(positive.dtype))
        onto = (positive + negative * keep).flatten(2)
        targets = rows.pick(place).expand(rows.coefficients.shape).flatten(2)
        shape = (onto.shape[0], source[0], padded_lower.shape[2] * padded_lower.shape[3])
        spread = onto.new_zeros(shape).scatter_add(2, targets, onto)
        spread = spread.reshape(-1, source[0], *padded_lower.shape[2:])
        spread = spread[:, :, top : top + source[1], left : left + source[2]]
        size = magnitude(negative * rows.pick(highest)) * 2.0**10
        result = LinearForm(spread.contiguous(), source, rows.sample)
        if self.rounding.is_sound:
            # One input gathers the coefficients of all windows that it won.
            reach = torch.maximum(best.abs(), highest.abs())
            spread_size = magnitude(rows.coefficients * rows.pick(reach))
            gained = gained - spread_size * (4 * step.overlap * unit_roundoff(self.dtype))
        return [result], gained, size

    def _concretize(self, rows: LinearForm) -> Tensor:
        """Least value [rows] float64 of rows . x' over the region."""
        below, above, middle, reach, reach_norm = self._reach()
        flat = rows.coefficients.flatten(1)
        centre = self._centre()
        unit = unit_roundoff(self.dtype) if self.rounding.is_sound else 0.0
        if rows.is_patch or rows.sample is not None:
            at_centre = (flat * rows.pick(self._centre(flat.dtype)).flatten(1)).sum(
                1, dtype=torch.float64
            )
        else:
            at_centre = flat.to(torch.float64) @ centre[0].flatten()
        norm = torch.linalg.vector_norm(flat.detach(), dim=1).to(torch.float64)
        norm = norm + lost_in_norm(flat.shape[1], self.dtype)
        centre_norm = centre.flatten(1).norm(dim=1)
        lost = (4 * unit + 2.0**-38) * norm * _of_rows(centre_norm, rows) * 1.01
        lost = lost + lost_in_sums(self.dtype)
        if self.region.norm == "l2":
            drop, point = quick_maximum(
                -flat.detach(),
                rows.pick(below).flatten(1),
                rows.pick(above).flatten(1),
                _of_rows(self.region.epsilon, rows).expand(len(flat)),
                _of_rows(reach_norm, rows),
                self.rounds,
            )
            if flat.requires_grad:
                # Envelope theorem: the derivative of the maximum is the point that attains it.
                along = (-flat * point).sum(1, dtype=torch.float64)
                drop = drop + (along - along.detach())
        else:
            # Off centre where the pixel box cuts the ball: below and above are not symmetric.
            drop = quick_total(flat.abs() * rows.pick(reach).flatten(1))
            drop = drop - quick_total(flat * rows.pick(middle).flatten(1))
            drop = (
                drop
                + (flat.shape[1] + 8 + SUM_ROUNDINGS) * unit * norm * _of_rows(reach_norm, rows) * 2
            )
        return at_centre - drop - lost * self.rounding.is_sound

    def _centre(self, dtype: torch.dtype = torch.float64) -> Tensor:
        if dtype not in self._centres:
            self._centres[dtype] = self.region.x.to(dtype)
        return self._centres[dtype]

    def _reach(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """lower - x <= 0, upper - x >= 0, their middle and half width, outward; corner's norm."""
        if self._offsets is None:
            lower, upper = self.box(0)
            below = (lower.to(torch.float64) - self._centre()).clamp_max(0.0)
            above = (upper.to(torch.float64) - self._centre()).clamp_min(0.0)
            # In float64 until the end: differences of denormal numbers have no half in float32.
            up = 1.0 + 4 * unit_roundoff(torch.float64)
            low, high = below * up, above * up
            below, above = rounded_down(low, self.dtype), rounded_up(high, self.dtype)
            norm = euclidean_norm(torch.maximum(-low, high)) * 1.001
            middle = ((low + high) * 0.5).to(self.dtype)
            exact = middle.to(torch.float64)
            half = rounded_up(torch.maximum(high - exact, exact - low) * up, self.dtype)
            self._offsets = (below, above, middle, half, norm)
        return self._offsets


Through = tuple[list[LinearForm], Tensor, Tensor]


def has_backward_rule(op: Affine | Layer) -> bool:
    """Whether ``BackwardPass`` covers the step, the boxes that it needs included."""
    if isinstance(op, Affine):
        return has_adjoint(op)
    return has_forward_rule(op) and (type(op) in RELAXATIONS or type(op) in BACKWARD)


def _nothing(rows: LinearForm) -> Tensor:
    return torch.zeros((), dtype=torch.float64, device=rows.coefficients.device)


def _add(backward: BackwardPass, index: int, step: GraphStep, rows: LinearForm) -> Through:
    size = _nothing(rows)
    if backward.rounding.is_sound:
        both = 3 * (backward.rounding.deployed + backward.rounding.own)
        size = magnitude(rows.coefficients * rows.pick(backward._share_of(index + 1, both * 1.01)))
    return [rows, rows], -size, size


def _reshape(backward: BackwardPass, index: int, step: GraphStep, rows: LinearForm) -> Through:
    rows, source = rows.dense(), backward.shape_of(step.sources[0])
    moved = LinearForm(rows.coefficients.reshape(-1, *source), source, rows.sample)
    return [moved], _nothing(rows), _nothing(rows)


def _permute(backward: BackwardPass, index: int, step: GraphStep, rows: LinearForm) -> Through:
    op, rows, source = step.op, rows.dense(), backward.shape_of(step.sources[0])
    assert isinstance(op, Permute)
    order = [op.axes.index(axis) + 1 for axis in range(len(op.axes))]
    flat = rows.coefficients.permute(0, *order)
    moved = LinearForm(flat.reshape(-1, *source), source, rows.sample)
    return [moved], _nothing(rows), _nothing(rows)


def _pad(backward: BackwardPass, index: int, step: GraphStep, rows: LinearForm) -> Through:
    op, rows, source = step.op, rows.dense(), backward.shape_of(step.sources[0])
    assert isinstance(op, Pad)
    flat, (top, left, _, _) = rows.coefficients, op.padding
    inner = flat[..., top : top + source[-2], left : left + source[-1]]
    gained = (total(flat) - total(inner)) * op.value
    size = magnitude(flat) * abs(op.value)
    return [LinearForm(inner.contiguous(), source, rows.sample)], gained, size


def _max_pool(backward: BackwardPass, index: int, step: GraphStep, rows: LinearForm) -> Through:
    assert isinstance(step.op, MaxPool2d)
    return backward._max_pool(step, step.op, rows.dense())


def _of_rows(values: Tensor, rows: LinearForm) -> Tensor:
    """values [batch] for each row, [rows] (or [1] for a single sample)."""
    return values if rows.sample is None else values[rows.sample]


def _window_members(op: MaxPool2d, width: int, grid: tuple[int, ...]) -> Tensor:
    """Flat places (in the padded map of this width) of every window's inputs, [h, w, k_h k_w]."""
    rows = torch.arange(grid[0])[:, None, None, None] * op.stride[0]
    rows = rows + torch.arange(op.kernel[0])[:, None] * op.dilation[0]
    columns = torch.arange(grid[1])[:, None, None] * op.stride[1]
    columns = columns + torch.arange(op.kernel[1]) * op.dilation[1]
    return (rows * width + columns).flatten(2)


#: One row per layer that has no lines of its own (``RELAXATIONS``).
BACKWARD: dict[type[Layer], Callable[[BackwardPass, int, GraphStep, LinearForm], Through]] = {
    Add: _add,
    Reshape: _reshape,
    Permute: _permute,
    Pad: _pad,
    MaxPool2d: _max_pool,
    **JOINS,
}
