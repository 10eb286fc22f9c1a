"""Ball and box together: a set that holds every float32 evaluation, pushed through the steps.

The state after a step is a centre c (the verifier's own evaluation at x), a Euclidean radius R and
a box [l, u]: for every input x' of the region and every float32 evaluation z' of the deployed
network there, |z' - c|_2 <= R and l <= z' <= u. Real-arithmetic rules are those of BCP (Lee et
al. 2020); rounding of the deployed network and of this computation is folded into R and the box at
every step (docs/soundness.md), so that no separate budget is needed. Layers that are not affine
have their rules in ``layers.registry``.

``ForwardPass`` is the only walk. As it stands, norms are proved and roundings inside;
``local_pass`` takes norms per sample, and training (``workers.training.bounds``) the weights of the
step, estimated norms and no rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from models.layers.base import Layer
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.enclosure import Enclosure, cut_box
from workers.verification.forward.ball import AFFINE_BALL
from workers.verification.forward.sections import KnownParts
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.graph_step import GraphStep, UnsupportedLayer
from workers.verification.layers.registry import apply_layer, rules_of
from workers.verification.numerics import (
    floor,
    per_sample,
    raised,
    rough_norm,
    rounding_error,
    up,
)
from workers.verification.region import Region
from workers.verification.rounding import Rounding, overflow_ceiling, unit_roundoff

__all__ = [
    "AffineMap",
    "Enclosure",
    "ForwardPass",
    "forward_step",
    "has_forward_rule",
    "propagate",
    "rounded_interval",
    "start",
]

#: Called before every step that is not affine: (index, values); may tighten its inputs' boxes.
Refine = Callable[[int, list[Enclosure | None]], None]


class AffineMap(Protocol):
    """What ball and box need of y = W x + b: an ``Affine``, or weights that are being trained."""

    @property
    def wide(self) -> bool:
        """Whether the ball alone is as good as ball and box where the box is the ball's own."""

    def apply(self, x: Tensor) -> Tensor:
        """W x + b."""

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Middle and half the width of a box's image in real arithmetic."""

    def row_norms_like(self, like: Tensor) -> Tensor:
        """Euclidean norms of W's rows, broadcastable to ``like`` [batch, *out_shape]."""


def propagate(
    compiled: CompiledNetwork,
    region: Region,
    *,
    rounding: Rounding,
    dtype: torch.dtype,
    ball: bool = True,
    box: bool = True,
    refine: Refine | None = None,
    values: list[Enclosure | None] | None = None,
    clock: Clock = UNLIMITED,
) -> Enclosure:
    """The enclosure before the head, for a batch; ``ball`` and ``box`` say what is carried.

    ball and box: BCP. box alone: interval bounds (IBP). The rest as ``ForwardPass.through`` has it.
    """
    before = start(region, dtype, ball=ball, box=box)
    return ForwardPass(rounding, clock).through(
        compiled.steps, before, refine=refine, values=values
    )


def start(region: Region, dtype: torch.dtype, *, ball: bool = True, box: bool = True) -> Enclosure:
    """The enclosure of the region itself."""
    lower, upper = region.box(dtype)
    radius = region.radius(lower, upper)
    if not ball:
        radius = torch.full_like(radius, torch.inf)
    return Enclosure(
        region.x.to(dtype),
        radius,
        lower if box else None,
        upper if box else None,
        torch.isfinite(radius) if ball else torch.ones_like(radius, dtype=torch.bool),
        round=ball and box and region.norm == "l2",
    )


class ForwardPass:
    """One way of ball and box through the steps: proved norms, both evaluations' roundings inside.

    A subclass says what it knows better or otherwise: ``map_of`` (which map a step is), ``radius``
    (the norm), ``intersection`` (how two boxes are cut), ``layer`` (all that is not affine).
    """

    def __init__(self, rounding: Rounding, clock: Clock) -> None:
        # No default: a compiler of the training step cannot read one of such a class.
        self.rounding = rounding
        self.clock = clock

    def through(
        self,
        steps: Sequence[GraphStep],
        before: Enclosure,
        *,
        refine: Refine | None = None,
        values: list[Enclosure | None] | None = None,
    ) -> Enclosure:
        """The enclosure of the last value. The clock is looked at before every step.

        ``refine(index, values)`` is called before every step that is not affine and may tighten the
        boxes of its inputs; with it, all values are kept (value i + 1 is step i's result), in the
        list ``values`` if given; else each is dropped after its last use.
        Raises OutOfTime, UnsupportedLayer where no rule covers a step.
        """
        values = [] if values is None else values
        values.append(before)
        last_use = {source: i for i, step in enumerate(steps) for source in _read(step)}
        parts = KnownParts.of(steps, self.rounding)
        result = before
        for index, step in enumerate(steps):
            self.clock.check()
            if refine is not None and not isinstance(step.op, Affine):
                refine(index, values)
            inputs = [_held(values[source]) for source in step.sources]
            if parts is not None:
                parts.read(step, inputs)
            result = self.carry(index, step, inputs)
            if step.also is not None:
                inputs = [_held(values[source]) for source in step.also.sources]
                cut_box(result, self.carry(index, step.also, inputs))
            if parts is not None:
                parts.tighten(step, result)
            values.append(result)
            for source in set(_read(step)):
                if refine is None and last_use[source] == index:
                    values[source] = None
        return result

    def carry(self, index: int, step: GraphStep, inputs: list[Enclosure]) -> Enclosure:
        """The enclosure of the step's result. Raises UnsupportedLayer where no rule covers it."""
        op = self.map_of(step, inputs[0])
        if op is None:
            return self.layer(index, step, inputs)
        return self.affine(index, step, op, inputs[0])

    def map_of(self, step: GraphStep, state: Enclosure) -> AffineMap | None:
        """The step as an affine map, None for all others; ``state``: its first input."""
        return step.op if isinstance(step.op, Affine) else None

    def layer(self, index: int, step: GraphStep, inputs: list[Enclosure]) -> Enclosure:
        """A step that is not affine: by its rule."""
        forward = None if isinstance(step.op, Affine) else rules_of(step.op).forward
        if forward is None:
            raise UnsupportedLayer(
                f"no rule carries ball and box through the layer {step.kind!r} ({step.name})"
            )
        return forward(step, inputs, self.rounding)

    def affine(self, index: int, step: GraphStep, op: AffineMap, state: Enclosure) -> Enclosure:
        """An affine map: the box's image and the box of the ball, intersected."""
        centre = op.apply(state.centre)
        size = rough_norm(state.centre) if self.rounding.is_sound else state.radius
        radius = self.radius(step, state.radius, size)
        lower = upper = None
        if state.round and op.wide:
            reach = self.reach(step, op, centre, state.radius, size)
            lower, upper = centre - reach, centre + reach
        elif state.lower is not None and state.upper is not None:
            lower, upper = self.intersection(step, op, centre, state, size)
        valid = (
            state.valid & self._fits(step, state, size) if self.rounding.is_sound else state.valid
        )
        return Enclosure(centre, radius, lower, upper, valid)

    def radius(self, step: GraphStep, radius: Tensor, size: Tensor) -> Tensor:
        """The ball's radius after an affine map, [batch] float64; size: norm of the centre before
        (any number where rounding is ignored)."""
        return AFFINE_BALL.grown(step, radius, size, self.rounding)

    def reach(
        self, step: GraphStep, op: AffineMap, centre: Tensor, radius: Tensor, size: Tensor
    ) -> Tensor:
        """How far an output may be from ``centre`` for inputs in the ball: |W_i| R and roundings.

        |z'_i - c_i| <= |W_i| R + g (|W_i| (|c| + R) + |b_i|) + g_own (|W_i| |c| + |b_i|), and room
        for computing c +- this in the verifier's own arithmetic (|c_i| <= |W_i| |c| + |b_i|).
        """
        rows, rounding = op.row_norms_like(centre), self.rounding
        if not rounding.is_sound:
            return rows * per_sample(radius, centre)
        exact = step.affine
        unit = unit_roundoff(centre.dtype)
        both = rounding.deployed_gamma(exact.terms) + rounding.own_gamma(exact.own_terms)
        both = both + 32 * unit
        coefficient = raised(radius + both * (size + radius), 15, centre.dtype)
        lost = rounding.underflow * exact.floor
        constant = exact.cast(
            f"ball constant {both}",
            centre,
            lambda: rounding_error(exact.bias_magnitude, both) + lost,
        )
        return torch.addcmul(constant, rows, per_sample(coefficient, centre))

    def interval(
        self, step: GraphStep, op: AffineMap, lower: Tensor, upper: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Middle and half the width of the box's image."""
        if self.rounding.is_sound:
            return rounded_interval(step.affine, lower, upper, self.rounding)
        return op.interval(lower, upper)

    def intersection(
        self, step: GraphStep, op: AffineMap, centre: Tensor, state: Enclosure, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The box's image, cut with the box of the ball where there is a ball."""
        assert state.lower is not None
        assert state.upper is not None
        middle, half = self.interval(step, op, state.lower, state.upper)
        lower, upper = middle - half, middle + half
        finite = torch.isfinite(state.radius)
        if not bool(finite.any()):
            return lower, upper
        reach = self.reach(step, op, centre, state.radius, size)
        if bool(finite.all()):
            lower = torch.maximum(lower, centre - reach, out=lower)
            return lower, torch.minimum(upper, centre + reach, out=upper)
        shaped = finite.reshape(-1, *([1] * (centre.dim() - 1)))
        lower = torch.where(shaped, torch.maximum(lower, centre - reach), lower)
        return lower, torch.where(shaped, torch.minimum(upper, centre + reach), upper)

    def _fits(self, step: GraphStep, state: Enclosure, size: Tensor) -> Tensor:
        """Where nothing that the deployed step holds overflows float32, [batch] bool."""
        op, reach = step.affine, size + state.radius
        largest = _largest_held(op, step.norms.absolute * reach + op.bias_norm(), reach)
        if not (state.round and op.wide) and state.lower is not None and state.upper is not None:
            ends = torch.maximum(state.upper.flatten(1).amax(1), -state.lower.flatten(1).amin(1))
            largest_input = ends.to(torch.float64)
            boxed = _largest_held(
                op, largest_input * op.largest_row_sum() + op.largest_bias(), largest_input
            )
            largest = torch.fmin(largest, boxed)
        return largest < overflow_ceiling(op.terms)


def _read(step: GraphStep) -> tuple[int, ...]:
    """The values that a step reads."""
    return step.sources if step.also is None else (*step.sources, *step.also.sources)


def _held(value: Enclosure | None) -> Enclosure:
    assert value is not None, "values are dropped after their last use only"
    return value


def _largest_held(op: Affine, result: Tensor, inputs: Tensor) -> Tensor:
    """Largest number that the deployed step holds, [batch] float64 (an upper bound), from what its
    result and its inputs are at most."""
    return torch.maximum(result, op.inner.gain * inputs + op.inner.shift)


def has_forward_rule(op: Affine | Layer) -> bool:
    """Whether ``propagate`` covers the step."""
    return isinstance(op, Affine) or rules_of(op).forward is not None


def forward_step(step: GraphStep, inputs: list[Tensor]) -> Tensor:
    """The step's plain value at the centres."""
    if isinstance(step.op, Affine):
        return step.op.apply(inputs[0])
    return apply_layer(step.op, *inputs)


def rounded_interval(
    op: Affine, lower: Tensor, upper: Tensor, rounding: Rounding
) -> tuple[Tensor, Tensor]:
    """Middle m' and half the width of the image of [l, u], such that m' -+ it holds every value.

    With m = (l + u) / 2 and r = (u - l) / 2 the deployed value lies within
    |W| ((1 + g) r + (g + g_own) |m|) + (g + g_own) |b| of the computed W m + b; ``unit`` terms
    cover the rounding of m, r, this reach itself and of m' +- reach. What m, r and the shares of
    them lose to underflow is below ``numerics.floor``, added before |W| may enlarge it.
    """
    unit = unit_roundoff(lower.dtype)
    deployed, own = rounding.deployed_gamma(op.terms), rounding.own_gamma(op.own_terms)
    # The reach is computed with a relative error of at most own: raised in advance.
    raise_by = up(31, lower.dtype) * (1.0 + 2 * own)
    both = (deployed + own + 32 * unit) * raise_by
    middle = (lower + upper).mul_(0.5)
    spread = middle.abs()
    torch.add(spread.new_tensor(floor(spread.dtype, rounding)), spread, alpha=both, out=spread)
    half = 0.5 * (1.0 + deployed) * raise_by
    spread.add_(upper, alpha=half).add_(lower, alpha=-half)
    reach = op.absolute(spread)
    lost = rounding.underflow * op.floor
    reach.add_(
        op.cast(
            f"box constant {both}", reach, lambda: rounding_error(op.bias_magnitude, both) + lost
        )
    )
    return op.apply(middle), reach
