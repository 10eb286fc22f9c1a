"""Ball and box together: a set that holds every float32 evaluation, pushed through the steps.

The state after a step is a centre c (the verifier's own evaluation at x), a Euclidean radius R and
a box [l, u]: for every input x' of the region and every float32 evaluation z' of the deployed
network there, |z' - c|_2 <= R and l <= z' <= u. Real-arithmetic rules are those of BCP (Lee et
al. 2020; methods-lipschitz 1.2); rounding of the deployed network and of this computation is folded
into R and the box at every step (methods-lipschitz 7.5), so that no separate budget is needed.
Layers that are not affine have their rules in ``layers.registry``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.layers.base import Layer
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.enclosure import Enclosure
from workers.verification.forward.ball import AFFINE_BALL
from workers.verification.graph.affine import Affine
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.graph_step import GraphStep, UnsupportedLayer
from workers.verification.layers.registry import apply_layer, rules_of
from workers.verification.numerics import floor, per_sample, rough_norm
from workers.verification.region import Region
from workers.verification.rounding import FLOAT32_MAX, Rounding, unit_roundoff

__all__ = [
    "Enclosure",
    "carry",
    "forward_step",
    "has_forward_rule",
    "propagate",
]

#: Rounding steps (about the inputs of one output) from which a round box is not worth a product.
ROUND_TERMS = 16


def propagate(
    compiled: CompiledNetwork,
    region: Region,
    *,
    rounding: Rounding,
    dtype: torch.dtype,
    ball: bool = True,
    box: bool = True,
    refine: Callable[[int, list[Enclosure | None]], None] | None = None,
    values: list[Enclosure | None] | None = None,
    clock: Clock = UNLIMITED,
) -> Enclosure:
    """The enclosure before the head, for a batch; ``ball`` and ``box`` say what is carried.

    ball and box: BCP. box alone: interval bounds (IBP). ``refine(index, values)`` is called before
    every step that is not affine and may tighten the boxes of its inputs; with it, all values are
    kept (value i + 1 is step i's result), in the list ``values`` if given; else each is dropped
    after its last use. ``clock`` is looked at before every step.
    """
    lower, upper = region.box(dtype)
    radius = region.radius(lower, upper)
    if not ball:
        radius = torch.full_like(radius, torch.inf)
    centre = region.x.to(dtype)
    values = [] if values is None else values
    values.append(
        Enclosure(
            centre,
            radius,
            lower if box else None,
            upper if box else None,
            torch.isfinite(radius) if ball else torch.ones_like(radius, dtype=torch.bool),
            round=ball and box and region.norm == "l2",
        )
    )
    last_use = {source: i for i, step in enumerate(compiled.steps) for source in step.sources}
    for index, step in enumerate(compiled.steps):
        clock.check()
        if refine is not None and not isinstance(step.op, Affine):
            refine(index, values)
        inputs = [values[source] for source in step.sources]
        assert all(value is not None for value in inputs)
        result = carry(step, inputs, rounding)  # type: ignore[arg-type]
        values.append(result)
        for source in set(step.sources):
            if refine is None and last_use[source] == index:
                values[source] = None
    final = values[-1]
    assert final is not None
    return final


def carry(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    """The enclosure of the step's result. Raises UnsupportedLayer where no rule covers it."""
    if isinstance(step.op, Affine):
        return _affine(step, inputs, rounding)
    rule = rules_of(step.op).forward
    if rule is None:
        kind = step.op.kind
        raise UnsupportedLayer(f"no rule carries ball and box through the layer {kind!r}")
    return rule(step, inputs, rounding)


def has_forward_rule(op: Affine | Layer) -> bool:
    """Whether ``propagate`` covers the step."""
    return isinstance(op, Affine) or rules_of(op).forward is not None


def forward_step(step: GraphStep, inputs: list[Tensor]) -> Tensor:
    """The step's plain value at the centres."""
    if isinstance(step.op, Affine):
        return step.op.apply(inputs[0])
    return apply_layer(step.op, *inputs)


def deployed_size(step: GraphStep, centre_norm: Tensor, radius: Tensor) -> Tensor:
    """Largest number that the deployed step holds, [batch] float64 (an upper bound)."""
    op, norms = step.op, step.norms
    assert isinstance(op, Affine)
    assert norms is not None
    gamma = Rounding.sound(torch.float64).deployed_gamma(op.terms)
    reach = centre_norm + radius
    result = norms.absolute * reach + op.bias_norm()
    between = op.inner.gain * reach + op.inner.shift
    return torch.maximum(result, between) * (1.01 + gamma)


def _affine(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    (state,) = inputs
    op = step.op
    assert isinstance(op, Affine)
    assert step.norms is not None
    centre = op.apply(state.centre)
    centre_norm = rough_norm(state.centre)
    radius = AFFINE_BALL.grown(step, state.radius, centre_norm, rounding)
    size = deployed_size(step, centre_norm, state.radius)
    lower = upper = None
    if state.round and op.terms >= ROUND_TERMS:
        reach = _ball_reach(op, centre, centre_norm, state.radius, rounding)
        lower, upper = centre - reach, centre + reach
    elif state.lower is not None and state.upper is not None:
        lower, upper, box_size = _affine_box(op, state.lower, state.upper, rounding)
        size = torch.fmin(size, box_size)
        finite = torch.isfinite(state.radius)
        if bool(finite.any()):
            reach = _ball_reach(op, centre, centre_norm, state.radius, rounding)
            if bool(finite.all()):
                lower = torch.maximum(lower, centre - reach, out=lower)
                upper = torch.minimum(upper, centre + reach, out=upper)
            else:
                shaped = finite.reshape(-1, *([1] * (centre.dim() - 1)))
                lower = torch.where(shaped, torch.maximum(lower, centre - reach), lower)
                upper = torch.where(shaped, torch.minimum(upper, centre + reach), upper)
    valid = state.valid & (size < FLOAT32_MAX) if rounding.is_sound else state.valid
    return Enclosure(centre, radius, lower, upper, valid)


def _ball_reach(
    op: Affine, centre: Tensor, centre_norm: Tensor, radius: Tensor, rounding: Rounding
) -> Tensor:
    """How far an output may be from ``centre`` for inputs in the ball: |W_i| R and the roundings.

    |z'_i - c_i| <= |W_i| R + g (|W_i| (|c| + R) + |b_i|) + g_own (|W_i| |c| + |b_i|), and room for
    computing c +- this in the verifier's own arithmetic (|c_i| <= |W_i| |c| + |b_i|).
    """
    unit = unit_roundoff(centre.dtype) if rounding.is_sound else 0.0
    both = rounding.deployed_gamma(op.terms) + rounding.own_gamma(op.terms) + 32 * unit
    coefficient = (radius + both * (centre_norm + radius)) * (1.0 + 32 * unit)
    rows = op.bound_like("row_norms", centre)
    if not rounding.is_sound:
        return rows * per_sample(coefficient, centre)
    lost = rounding.underflow * op.floor
    constant = op.cast(
        f"ball constant {both}", centre, lambda: op.bias_magnitude * both * 1.001 + lost
    )
    return torch.addcmul(constant, rows, per_sample(coefficient, centre))


def _affine_box(
    op: Affine, lower: Tensor, upper: Tensor, rounding: Rounding
) -> tuple[Tensor, Tensor, Tensor]:
    """Interval image [l', u'] of [l, u], and the largest number deployed [batch].

    With m = (l + u) / 2 and r = (u - l) / 2 the deployed value lies within
    |W| ((1 + g) r + (g + g_own) |m|) + (g + g_own) |b| of the computed W m + b; ``unit`` terms
    cover the rounding of m, r, this reach itself and of m' +- reach. What m, r and the shares of
    them lose to underflow is below ``numerics.floor``, added before |W| may enlarge it.
    """
    unit = unit_roundoff(lower.dtype) if rounding.is_sound else 0.0
    deployed, own = rounding.deployed_gamma(op.terms), rounding.own_gamma(op.terms)
    # The reach is computed with a relative error of at most own: raised in advance.
    up = (1.0 + 64 * unit) * (1.0 + 2 * own)
    both = (deployed + own + 32 * unit) * up
    middle = (lower + upper).mul_(0.5)
    spread = middle.abs()
    size = torch.maximum(upper.flatten(1).amax(1), -lower.flatten(1).amin(1)).to(torch.float64)
    torch.add(spread.new_tensor(floor(spread.dtype, rounding)), spread, alpha=both, out=spread)
    half = 0.5 * (1.0 + deployed) * up
    spread.add_(upper, alpha=half).add_(lower, alpha=-half)
    reach = op.absolute(spread)
    if rounding.is_sound:
        lost = rounding.underflow * op.floor
        reach.add_(
            op.cast(f"box constant {both}", reach, lambda: op.bias_magnitude * both * 1.001 + lost)
        )
    centre = op.apply(middle)
    between = size * op.inner.gain + op.inner.shift
    largest = torch.maximum(size * op.largest_row_sum() + op.largest_bias(), between)
    return centre - reach, centre + reach, largest * (1.01 + deployed)
