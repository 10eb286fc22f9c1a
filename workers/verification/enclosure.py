"""Ball and box together: a set that holds every float32 evaluation, pushed through the steps.

The state after a step is a centre c (the verifier's own evaluation at x), a Euclidean radius R and
a box [l, u]: for every input x' of the region and every float32 evaluation z' of the deployed
network there, |z' - c|_2 <= R and l <= z' <= u. Real-arithmetic rules are those of BCP (Lee et
al. 2020; methods-lipschitz 1.2); rounding of the deployed network and of this computation is folded
into R and the box at every step (methods-lipschitz 7.5), so that no separate budget is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers import Add, Layer, LeakyReLU, MaxPool2d, Pad, Permute, ReLU, Reshape
from workers.verification.affine import Affine
from workers.verification.program import Program, Step
from workers.verification.region import Region
from workers.verification.rounding import FLOAT32_MAX, Rounding, unit_roundoff

#: Rounding steps (about the inputs of one output) from which a round box is not worth a product.
ROUND_TERMS = 16
#: Boxes of more numbers than this hardly ever have a corner nearer than the ball's radius.
CORNER_SIZE = 2048
#: Numbers summed in float32 before float64 takes over.
STRETCH = 256

__all__ = ["Enclosure", "ball_rule", "euclidean_norm", "forward_step", "propagate", "rough_norm"]


@dataclass
class Enclosure:
    """centre, lower, upper [batch, *shape]; radius [batch] float64; valid [batch] bool.

    round: the box is the ball's own (an l2 region's): through a wide affine map the ball alone is
    tighter, and the interval product can be saved.

    lower and upper are None when only the ball is carried; radius is infinite when only the box is.
    ``valid`` falls where the deployed float32 may overflow: nothing may be concluded there. What is
    not finite stays so (NaN) to the end, where nothing is concluded from it.
    """

    centre: Tensor
    radius: Tensor
    lower: Tensor | None
    upper: Tensor | None
    valid: Tensor
    round: bool = False


def rough_norm(x: Tensor) -> Tensor:
    """Upper bound on the Euclidean norm of each row, [batch] float64, where 1 % does not matter."""
    norm = torch.linalg.vector_norm(x.flatten(1), dim=1).to(torch.float64)
    size = x[0].numel()
    lost = 2.0**-62 if x.dtype == torch.float32 else 1e-150
    return norm * (1.0 + (size + 8) * unit_roundoff(x.dtype)) + size**0.5 * lost


def euclidean_norm(x: Tensor) -> Tensor:
    """Upper bound on the Euclidean norm of each row, [batch] float64.

    In float32, stretches of 256 numbers are summed in float32 and these sums in float64.
    """
    flat = x.flatten(1)
    if flat.dtype == torch.float64:
        norm = torch.linalg.vector_norm(flat, dim=1)
        return norm * (1.0 + (flat.shape[1] + 8) * 2.0**-53) + flat.shape[1] ** 0.5 * 1e-150
    whole = flat.shape[1] // STRETCH * STRETCH
    parts = torch.linalg.vector_norm(flat[:, :whole].unflatten(1, (-1, STRETCH)), dim=2)
    square = parts.to(torch.float64).square().sum(1)
    if whole < flat.shape[1]:
        square = square + torch.linalg.vector_norm(flat[:, whole:], dim=1).double().square()
    # Squares below the float32 range are lost: at most 2^-62 per number.
    return square.sqrt() * (1.0 + (STRETCH + 8) * 2.0**-24) + flat.shape[1] ** 0.5 * 2.0**-62


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[batch] float64 -> [batch, 1, ...] in ``like``'s dtype, rounded up."""
    slack = 2.0**-22 if like.dtype == torch.float32 else 2.0**-50
    shaped = (values * (1.0 + slack)).to(like.dtype)
    return shaped.reshape(-1, *([1] * (like.dim() - 1)))


def ball_rule(step: Step, centre_norm: Tensor, rounding: Rounding) -> tuple[float, Tensor | float]:
    """(factor, offset): the radius after a step is at most factor * (sum of radii) + offset.

    centre_norm: [batch], sum of the norms of the input centres. For an affine step the factor is
    |W|_2 + g | |W| |_2 and the offset (g + g_own) (| |W| |_2 |c| + |b|): the operator norm of W
    plus the roundings of both evaluations, bounded by the norm of the entrywise absolute value.
    """
    op = step.op
    size = torch.Size(step.shape).numel() ** 0.5
    if isinstance(op, Affine):
        assert step.norms is not None
        deployed, own = rounding.deployed_gamma(op.terms), rounding.own_gamma(op.terms)
        absolute = step.norms.absolute
        factor = step.norms.spectral + (deployed * absolute if rounding.is_sound else 0.0)
        offset = centre_norm * ((deployed + own) * absolute) + (deployed + own) * op.bias_norm()
        offset = offset + rounding.underflow * (op.terms + absolute) * size
        return factor * (1.0 + 1e-14), offset * (1.0 + 1e-10)
    if isinstance(op, MaxPool2d):
        return step.overlap**0.5 * (1.0 + 1e-12), 0.0
    if isinstance(op, LeakyReLU | Add):
        both = 3 * (rounding.deployed + rounding.own)
        return 1.0 + both, both * centre_norm + 4 * rounding.underflow * size
    return 1.0, 0.0


def _grown(step: Step, radius: Tensor, centre_norm: Tensor, rounding: Rounding) -> Tensor:
    factor, offset = ball_rule(step, centre_norm, rounding)
    grown = (factor * radius + offset) * (1.0 + 1e-14)
    # Without a ball the radius stays infinite (0 * inf is no number).
    return torch.where(torch.isinf(radius), radius, grown)


def deployed_size(step: Step, centre_norm: Tensor, radius: Tensor) -> Tensor:
    """Largest absolute partial sum of the deployed step, [batch] float64 (an upper bound)."""
    op, norms = step.op, step.norms
    assert isinstance(op, Affine)
    assert norms is not None
    return (norms.absolute * (centre_norm + radius) + op.bias_norm()) * 1.01


def propagate(
    program: Program,
    region: Region,
    *,
    rounding: Rounding,
    dtype: torch.dtype,
    ball: bool = True,
    box: bool = True,
    refine: Callable[[int, list[Enclosure | None]], None] | None = None,
) -> Enclosure:
    """The enclosure before the head, for a batch; ``ball`` and ``box`` say what is carried.

    ball and box: BCP. box alone: interval bounds (IBP). ``refine(index, values)`` is called before
    every step that is not affine and may tighten the boxes of its inputs; with it, all values are
    kept (value i + 1 is step i's result), else each is dropped after its last use.
    """
    lower, upper = region.box(dtype)
    radius = region.radius(lower, upper)
    if not ball:
        radius = torch.full_like(radius, torch.inf)
    centre = region.x.to(dtype)
    values: list[Enclosure | None] = [
        Enclosure(
            centre,
            radius,
            lower if box else None,
            upper if box else None,
            torch.isfinite(radius) if ball else torch.ones_like(radius, dtype=torch.bool),
            round=ball and box and region.norm == "l2",
        )
    ]
    last_use = {source: i for i, step in enumerate(program.steps) for source in step.sources}
    for index, step in enumerate(program.steps):
        if refine is not None and not isinstance(step.op, Affine):
            refine(index, values)
        inputs = [values[source] for source in step.sources]
        assert all(value is not None for value in inputs)
        result = _rule(step.op)(step, inputs, rounding)  # type: ignore[arg-type]
        values.append(result)
        for source in set(step.sources):
            if refine is None and last_use[source] == index:
                values[source] = None
    final = values[-1]
    assert final is not None
    return final


def _affine(step: Step, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    (state,) = inputs
    op = step.op
    assert isinstance(op, Affine)
    assert step.norms is not None
    centre = op.apply(state.centre)
    centre_norm = rough_norm(state.centre)
    radius = _grown(step, state.radius, centre_norm, rounding)
    size = deployed_size(step, centre_norm, state.radius)
    lower = upper = None
    if state.round and op.terms >= ROUND_TERMS:
        reach = _ball_reach(op, centre, centre_norm, state.radius, rounding)
        lower, upper = centre - reach, centre + reach
    elif state.lower is not None and state.upper is not None:
        lower, upper, box_size = _affine_box(op, state.lower, state.upper, rounding)
        size = torch.minimum(size, box_size)
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
        return rows * _per_sample(coefficient, centre)
    floor = rounding.underflow * (op.terms + 1.0)
    constant = op.cast(
        f"ball constant {both}", centre, lambda: op.bias_magnitude * both * 1.001 + floor
    )
    return torch.addcmul(constant, rows, _per_sample(coefficient, centre))


def _affine_box(
    op: Affine, lower: Tensor, upper: Tensor, rounding: Rounding
) -> tuple[Tensor, Tensor, Tensor]:
    """Interval image [l', u'] of [l, u], and the largest deployed partial sum [batch].

    With m = (l + u) / 2 and r = (u - l) / 2 the deployed value lies within
    |W| ((1 + g) r + (g + g_own) |m|) + (g + g_own) |b| of the computed W m + b; ``unit`` terms
    cover the rounding of m, r, this reach itself and of m' +- reach.
    """
    unit = unit_roundoff(lower.dtype) if rounding.is_sound else 0.0
    deployed, own = rounding.deployed_gamma(op.terms), rounding.own_gamma(op.terms)
    # The reach is computed with a relative error of at most own: raised in advance.
    up = (1.0 + 64 * unit) * (1.0 + 2 * own)
    both = (deployed + own + 32 * unit) * up
    middle = (lower + upper).mul_(0.5)
    spread = middle.abs()
    size = torch.maximum(upper.flatten(1).amax(1), -lower.flatten(1).amin(1)).to(torch.float64)
    spread.mul_(both)
    half = 0.5 * (1.0 + deployed) * up
    spread.add_(upper, alpha=half).add_(lower, alpha=-half)
    reach = op.absolute(spread)
    if rounding.is_sound:
        floor = rounding.underflow * (op.terms + 1.0)
        reach.add_(
            op.cast(f"box constant {both}", reach, lambda: op.bias_magnitude * both * 1.001 + floor)
        )
    centre = op.apply(middle)
    largest = (size * op.largest_row_sum() + op.largest_bias()) * 1.01
    return centre - reach, centre + reach, largest


def _relu(step: Step, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    (state,) = inputs
    if state.lower is None or state.upper is None:
        return Enclosure(torch.relu(state.centre), state.radius, None, None, state.valid)
    result = Enclosure(
        torch.relu(state.centre),
        state.radius,
        torch.relu(state.lower),
        torch.relu(state.upper),
        state.valid,
    )
    return _box_to_ball(result)


def _box_to_ball(state: Enclosure) -> Enclosure:
    """radius <- min(radius, distance from the centre to the farthest corner of the box)."""
    if state.lower is None or state.upper is None or bool(torch.isinf(state.radius).all()):
        return state
    if state.lower[0].numel() > CORNER_SIZE:
        return state
    corner = torch.maximum(state.upper - state.centre, state.centre - state.lower)
    slack = 8 * unit_roundoff(corner.dtype)
    state.radius = torch.minimum(state.radius, euclidean_norm(corner) * (1.0 + slack))
    return state


def _leaky_relu(step: Step, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    (state,) = inputs
    layer = step.op
    assert isinstance(layer, LeakyReLU)
    both = 3 * (rounding.deployed + rounding.own)
    tiny = 4 * rounding.underflow
    centre = layer(state.centre)
    radius = _grown(step, state.radius, rough_norm(state.centre), rounding)
    lower = upper = None
    if state.lower is not None and state.upper is not None:
        lower, upper = layer(state.lower), layer(state.upper)
        lower = lower - both * lower.clamp_max(0.0).abs() - tiny * (lower < 0)
        upper = upper + both * upper.clamp_max(0.0).abs() + tiny * (upper < 0)
    return _box_to_ball(Enclosure(centre, radius, lower, upper, state.valid))


def _max_pool(step: Step, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    (state,) = inputs
    layer = step.op
    assert isinstance(layer, MaxPool2d)
    lower = None if state.lower is None else layer(state.lower)
    upper = None if state.upper is None else layer(state.upper)
    radius = _grown(step, state.radius, state.radius, rounding)
    result = Enclosure(layer(state.centre), radius, lower, upper, state.valid)
    return _box_to_ball(result)


def _add(step: Step, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    first, second = inputs
    both = 3 * (rounding.deployed + rounding.own)
    centre = first.centre + second.centre
    norms = rough_norm(first.centre) + rough_norm(second.centre)
    radius = _grown(step, first.radius + second.radius, norms, rounding)
    lower = upper = None
    if first.lower is not None and second.lower is not None:
        assert first.upper is not None
        assert second.upper is not None
        lower, upper = first.lower + second.lower, first.upper + second.upper
        if both > 0.0:
            low = first.lower.abs() + second.lower.abs()
            high = first.upper.abs() + second.upper.abs()
            slack = torch.maximum(low, high) * both
            lower, upper = lower - slack, upper + slack
    valid = first.valid & second.valid
    if rounding.is_sound:
        size = norms + first.radius + second.radius
        if lower is not None and upper is not None:
            largest = torch.maximum(lower.abs(), upper.abs()).flatten(1).amax(1)
            size = torch.minimum(size, largest.to(torch.float64) * 1.01)
        valid = valid & (size < FLOAT32_MAX)
    return Enclosure(centre, radius, lower, upper, valid)


def _exact(step: Step, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    """Reshape, permutation, padding with a constant: the same numbers elsewhere."""
    (state,) = inputs
    layer = step.op
    assert isinstance(layer, Layer)
    return Enclosure(
        layer(state.centre),
        state.radius,
        None if state.lower is None else layer(state.lower),
        None if state.upper is None else layer(state.upper),
        state.valid,
        state.round,
    )


def forward_step(step: Step, inputs: list[Tensor]) -> Tensor:
    """The step's plain value at the centres."""
    if isinstance(step.op, Affine):
        return step.op.apply(inputs[0])
    result: Tensor = step.op(*inputs)
    return result


Rule = Callable[[Step, list[Enclosure], Rounding], Enclosure]

#: One rule per layer; a new layer is one rule and one row.
RULES: dict[type[Layer], Rule] = {
    ReLU: _relu,
    LeakyReLU: _leaky_relu,
    MaxPool2d: _max_pool,
    Add: _add,
    Reshape: _exact,
    Permute: _exact,
    Pad: _exact,
}


def _rule(op: Affine | Layer) -> Rule:
    return _affine if isinstance(op, Affine) else RULES[type(op)]
