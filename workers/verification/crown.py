"""CROWN (Zhang et al., NeurIPS 2018) and CAP (Wong and Kolter 2018) by one backward pass.

Boxes come from ball and box first; only neurons that stay unstable get backward rows of their own,
layer by layer, and every box refined so is used by the next layer (methods-linf 3 and 5). For l2
the pixel box is used too: each row is bounded over ball and box together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.layers import Layer, LeakyReLU, Permute, ReLU, Reshape
from workers.verification.affine import Affine, Convolution, Dense
from workers.verification.backward import BackwardPass
from workers.verification.backward_joins import open_pairs
from workers.verification.enclosure import Enclosure, propagate
from workers.verification.envelope import rounded_down, rounded_up
from workers.verification.margins import margin_lower_bounds
from workers.verification.program import Program, Step
from workers.verification.region import Region
from workers.verification.relaxation import RELAXATIONS, open_neurons
from workers.verification.rounding import Rounding
from workers.verification.rows import Frame, Rows

#: Neurons of the first layer are bounded over ball and box together where at least this share of
#: the squared weights lies on pixels too near to 0 or 1 for the ball.
CUT_SHARE = 0.1

#: Rows are chosen anew for the second end where at most this share still needs it.
WORTH_CHOOSING = 0.7

__all__ = ["cap_margins", "crown_margins", "refined_pass", "unit_rows"]

#: Bytes of one tensor of coefficients handled at once.
ROW_BYTES = {"cpu": 2**22, "cuda": 2**30}


def crown_margins(
    program: Program, region: Region, labels: Tensor, rounding: Rounding, dtype: torch.dtype
) -> Tensor:
    """Lower bounds [batch, classes] on f_y - f_j over the region, adaptive slopes."""
    backward, bounds = refined_pass(program, region, labels, rounding, dtype, "crown")
    return final_rows(backward, labels, bounds)


def cap_margins(
    program: Program, region: Region, labels: Tensor, rounding: Rounding, dtype: torch.dtype
) -> Tensor:
    """The same with the chord's slope below unstable neurons (CAP)."""
    backward, bounds = refined_pass(program, region, labels, rounding, dtype, "cap")
    return final_rows(backward, labels, bounds)


def refined_pass(
    program: Program,
    region: Region,
    labels: Tensor,
    rounding: Rounding,
    dtype: torch.dtype,
    slopes: str,
) -> tuple[BackwardPass, Tensor]:
    """Boxes of all values, refined by backward rows, and the margins that they give alone."""
    backward = BackwardPass(program, region, [], rounding, dtype, slopes)

    def refine(index: int, values: list[Enclosure | None]) -> None:
        backward.values = values
        for source, unstable in _open_places(backward, program.steps[index]):
            first = _from_input(program, source)
            if first is not None and region.norm == "linf":
                # One affine map leads here: intervals are exact.
                continue
            if first is not None and isinstance(first, Dense | Convolution):
                unstable = unstable & _cut(backward, first).reshape(unstable.shape)
            state = values[source]
            assert state is not None
            assert state.lower is not None
            assert state.upper is not None
            places = (unstable & _shaped(state.valid, unstable)).nonzero(as_tuple=True)
            if not places[0].numel():
                continue
            kink = isinstance(program.steps[index].op, ReLU | LeakyReLU)
            low, high = _bounds_of(backward, source, places, kink=kink)
            lower = state.lower[places].to(torch.float64)
            upper = state.upper[places].to(torch.float64)
            state.lower[places] = rounded_down(torch.fmax(lower, low), dtype)
            state.upper[places] = rounded_up(torch.fmin(upper, high), dtype)

    state = propagate(
        program, region, rounding=rounding, dtype=dtype, refine=refine, values=backward.values
    )
    return backward, margin_lower_bounds(program.head, state, labels, rounding)


def final_rows(
    backward: BackwardPass,
    labels: Tensor,
    bounds: Tensor,
    solve: Callable[[BackwardPass, int, Rows, Tensor], Tensor] | None = None,
) -> Tensor:
    """``bounds`` [batch, classes] improved by backward rows for the classes still open.

    solve(backward, value, rows, needed) -> lower bounds [rows]; a row above ``needed`` is proved.
    """
    program = backward.program
    value = len(program.steps)
    state = backward.values[value]
    assert state is not None
    head = program.head
    device = state.centre.device
    # Rows of -inf: what the head itself ruled out (overflow) stays so.
    concluded = ~torch.isneginf(bounds).any(1)
    open_pairs = ~(bounds > 0) & (state.valid & concluded)[:, None]
    sample, other = open_pairs.nonzero(as_tuple=True)
    if not sample.numel():
        return bounds
    weight = head.weight.to(device)
    shape = tuple(state.centre.shape[1:])
    width = max(1, ROW_BYTES[device.type] // (_widest(program) * 8))
    bounds = bounds.clone()
    slack = head_rounding(backward, state)
    for start in range(0, sample.numel(), width):
        b, j = sample[start : start + width], other[start : start + width]
        y = labels[b]
        coefficients = (weight[y] - weight[j]).to(backward.dtype).reshape(-1, *shape)
        rows = Rows(coefficients, shape, None if len(labels) == 1 else b)
        bias = (head.bias[y.cpu()] - head.bias[j.cpu()]).to(device)
        gained = bias - slack[b, y] - slack[b, j]
        if solve is None:
            found = backward.lower_bound(value, rows)
        else:
            found = solve(backward, value, rows, -gained)
        bounds[b, j] = torch.fmax(bounds[b, j], found + gained)
    return bounds


def head_rounding(backward: BackwardPass, state: Enclosure) -> Tensor:
    """[batch, classes]: deployed rounding of the head, and of w_y - w_j in this arithmetic."""
    head, rounding = backward.program.head, backward.rounding
    assert state.lower is not None
    assert state.upper is not None
    reach = torch.maximum(state.lower.abs(), state.upper.abs()).flatten(1).to(torch.float64)
    if not rounding.is_sound:
        return torch.zeros(len(reach), head.weight.shape[0], dtype=torch.float64)
    deployed = rounding.deployed_gamma(head.terms) if head.terms else 0.0
    size = reach @ head.weight.to(reach.device).abs().T + head.bias_magnitude.to(reach.device)
    both = deployed + rounding.own_gamma(4)
    lost = reach.sum(1, keepdim=True) * (2.0**-110 if backward.dtype == torch.float32 else 0.0)
    return size * (both * 1.001) + rounding.underflow * head.floor + lost


def _bounds_of(
    backward: BackwardPass, value: int, places: tuple[Tensor, ...], *, kink: bool
) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds [n] float64 of single neurons (sample, *index) of a value.

    The end nearer to 0 comes first. ``kink``: only which side of 0 a neuron is on matters, so the
    other end is left infinite where the first one has settled that.
    """
    low, high = [], []
    device = places[0].device
    backward.windows.clear()
    lower, upper = backward.box(value)
    width = max(1, ROW_BYTES[device.type] // (_row_numbers(backward, value) * 8))
    for start in range(0, places[0].numel(), width):
        chosen = tuple(axis[start : start + width] for axis in places)
        # 1: the lower end first.
        sign = torch.where(lower[chosen] + upper[chosen] > 0, 1.0, -1.0).to(backward.dtype)
        rows = unit_rows(backward, value, chosen)
        first = _row_bound(backward, _turned(rows, sign))
        second = torch.full_like(first, -torch.inf)
        still = ~(first >= 0) if kink else torch.ones_like(first, dtype=torch.bool)
        if int(still.sum()) < WORTH_CHOOSING * len(first):
            some = tuple(axis[still] for axis in chosen)
            if some[0].numel():
                part = unit_rows(backward, value, some)
                second[still] = _row_bound(backward, _turned(part, -sign[still]))
        else:
            both = _row_bound(backward, _turned(rows, -sign))
            # No more than above: the answer must not depend on the batch.
            second = torch.where(still, both, second)
        low.append(torch.where(sign > 0, first, second))
        high.append(-torch.where(sign > 0, second, first))
    return torch.cat(low), torch.cat(high)


def _open_places(backward: BackwardPass, step: Step) -> list[tuple[int, Tensor]]:
    """(value, [batch, *shape] bool): inputs of the step whose boxes are worth a backward pass."""
    layer = step.op
    assert isinstance(layer, Layer)
    boxes = [backward.box(source) for source in step.sources]
    if type(layer) in RELAXATIONS:
        chosen = open_neurons(layer, *boxes[0])
    else:
        pairs = open_pairs(layer, boxes)
        if pairs is None:
            return []
        chosen = pairs
    return [(source, chosen) for source in dict.fromkeys(step.sources) if source != 0]


UnitRows = tuple[int, Rows, Tensor, Tensor]


def unit_rows(backward: BackwardPass, value: int, places: tuple[Tensor, ...]) -> UnitRows:
    """Rows for single neurons of a value, moved through the affine step that makes them.

    Returns (value, rows, constant, slack): neuron = rows . value + constant, up to slack.
    """
    step = backward.program.steps[value - 1]
    sample = None if backward.region.x.shape[0] == 1 else places[0]
    dtype, device = backward.dtype, places[0].device
    op = step.op
    count = places[0].numel()
    zero = torch.zeros(count, dtype=torch.float64, device=device)
    if isinstance(op, Convolution) and op.geometry.groups == 1:
        like = torch.empty(0, dtype=dtype, device=device)
        kernel = op.cast("dilated", like, lambda: _dilated(op))
        rows = kernel[places[1]]
        grid, size = (step.shape[1], step.shape[2]), (op.in_shape[1], op.in_shape[2])
        geometry, extent = op.geometry, (kernel.shape[2], kernel.shape[3])
        origin = (-geometry.padding[0], -geometry.padding[1])
        frame = Frame(
            places[2],
            places[3],
            grid,
            geometry.stride,
            origin,
            extent,
            size,
            windows=backward.windows,
        )
        error = backward.error(value - 1)
        bias = op.bias_like(rows).expand(op.out_shape)[places[1:]].to(torch.float64)
        slack = zero if error is None else error[places].to(torch.float64) * 1.001
        patch = Rows(rows, op.in_shape, sample, frame).masked().compact()
        return step.sources[0], patch, bias, slack
    if isinstance(op, Dense):
        like = torch.empty(0, dtype=dtype, device=device)
        rows = op.cast("weight", like, lambda: op.weight)[places[1]]
        error = backward.error(value - 1)
        bias = op.bias_like(rows).expand(op.out_shape)[places[1]].to(torch.float64)
        slack = zero if error is None else error[places].to(torch.float64) * 1.001
        return step.sources[0], Rows(rows, op.in_shape, sample), bias, slack
    shape = step.shape
    units = torch.zeros(count, *shape, dtype=dtype, device=device)
    units[(torch.arange(count, device=device), *places[1:])] = 1.0
    return value, Rows(units, shape, sample), zero, zero


def _row_bound(backward: BackwardPass, rows: UnitRows) -> Tensor:
    value, coefficients, constant, slack = rows
    return backward.lower_bound(value, coefficients) + constant - slack


def _turned(rows: UnitRows, sign: Tensor) -> UnitRows:
    """Each neuron times its sign."""
    value, unit, constant, slack = rows
    turned = unit.with_coefficients(unit.coefficients * _shaped(sign, unit.coefficients))
    return value, turned, constant * sign, slack


def _dilated(op: Convolution) -> Tensor:
    d_h, d_w = op.geometry.dilation
    k_h, k_w = op.weight.shape[2:]
    full = op.weight.new_zeros(*op.weight.shape[:2], d_h * (k_h - 1) + 1, d_w * (k_w - 1) + 1)
    full[:, :, ::d_h, ::d_w] = op.weight
    return full


def _from_input(program: Program, value: int) -> Affine | None:
    """The affine map that alone (rearrangements apart) leads from the input to the value."""
    step = program.steps[value - 1]
    while isinstance(step.op, Reshape | Permute) and step.sources[0]:
        step = program.steps[step.sources[0] - 1]
    op = step.op
    if not isinstance(op, Affine):
        return None
    while step.sources[0] and isinstance(program.steps[step.sources[0] - 1].op, Reshape | Permute):
        step = program.steps[step.sources[0] - 1]
    return op if step.sources[0] == 0 else None


def _cut(backward: BackwardPass, op: Dense | Convolution) -> Tensor:
    """[batch, *out_shape] bool: outputs of which the pixel box cuts the l2 ball noticeably.

    A guess that decides only what is tried. Where the ball's own extreme point eps w / |w| keeps to
    the box but for a small share of |w|^2, the ball alone is as good.
    """
    lower, upper = backward.box(0)
    x = backward.region.x.to(lower.dtype)
    room = torch.minimum(upper - x, x - lower)
    rows = op.row_norms_square().amax()
    largest = op.weight.abs().amax() / rows.sqrt().clamp_min(1e-300)
    reach = backward.region.epsilon.to(lower.dtype) * float(largest)
    tight = (room < _shaped(reach, room)).to(lower.dtype).reshape(-1, *op.in_shape)
    squares = op.cast("shares", lower, lambda: op.weight.square() / rows.clamp_min(1e-300))
    if isinstance(op, Dense):
        cut = tight.flatten(1) @ squares.T
    else:
        cut = op.geometry.apply(tight, squares)
    return cut > CUT_SHARE * (op.row_norms_square() / rows.clamp_min(1e-300)).to(cut)


def _widest(program: Program) -> int:
    sizes = [torch.Size(step.shape).numel() for step in program.steps]
    return max([*sizes, torch.Size(program.input_shape).numel()])


def _row_numbers(backward: BackwardPass, value: int) -> int:
    """Numbers in one row's largest tensor: a guess that only bounds memory."""
    program = backward.program
    if isinstance(program.steps[value - 1].op, Convolution):
        return max(256, _widest(program) // 4)
    return _widest(program)


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *([1] * (like.dim() - 1)))
