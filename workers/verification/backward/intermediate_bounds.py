"""Intermediate bounds: single neurons bounded by backward rows of their own, in blocks that fit
memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.joins import Add
from workers.verification.backward.backward_pass import BackwardPass
from workers.verification.backward.linear_form import LinearForm, PatchGrid
from workers.verification.block_sizes import GRADIENT_TENSORS, ROW_BYTES
from workers.verification.clock import rows_per_piece
from workers.verification.graph.affine import Affine
from workers.verification.graph.affine_maps import Convolution, Dense, Diagonal
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.graph_step import GraphStep
from workers.verification.graph.turned_pairs import PairTurn
from workers.verification.layers.registry import rules_of
from workers.verification.norms.per_sample import costliest
from workers.verification.numerics import nonzero, raised, rounding_error
from workers.verification.region import Region

__all__ = [
    "Solve",
    "before_turn",
    "cut_by_pixels",
    "from_input",
    "neuron_bounds",
    "open_places",
    "plain_bound",
    "rows_at_once",
    "unit_forms",
    "widest",
]

#: Neurons of the first layer are bounded over ball and box together where at least this share of
#: the squared weights lies on pixels too near to 0 or 1 for the ball.
CUT_SHARE = 0.1

#: Rows are chosen anew for the second end where at most this share still needs it.
WORTH_CHOOSING = 0.7

#: solve(backward, value, rows, needed) -> lower bounds [rows] of rows . value; beyond ``needed``
#: [rows] more is of no use.
Solve = Callable[[BackwardPass, int, LinearForm, Tensor], Tensor]


def plain_bound(backward: BackwardPass, value: int, rows: LinearForm, needed: Tensor) -> Tensor:
    """One backward pass with the slopes of its own rule."""
    return backward.lower_bound(value, rows)


def rows_at_once(numbers: int, multiplications: int, device: torch.device, solve: Solve) -> int:
    """How many rows of so many coefficients may be bounded together, in memory and in time.

    multiplications: of one row in the most expensive step.
    """
    tensors = 1 if solve is plain_bound else GRADIENT_TENSORS[device.type]
    fit = max(1, ROW_BYTES[device.type] // (numbers * 8 * tensors))
    return min(fit, rows_per_piece(multiplications, device))


def neuron_bounds(
    backward: BackwardPass,
    value: int,
    places: tuple[Tensor, ...],
    *,
    kink: bool,
    solve: Solve = plain_bound,
) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds [n] float64 of single neurons (sample, *index) of a value.

    The end nearer to 0 comes first. ``kink``: only which side of 0 a neuron is on matters, so the
    other end is left infinite where the first one has settled that.
    """
    enough = 0.0 if kink else torch.inf
    low, high = [], []
    device = places[0].device
    backward.windows.clear()
    lower, upper = backward.box(value)
    numbers = _row_numbers(backward, value)
    width = rows_at_once(numbers, costliest(backward.compiled), device, solve)
    for start in range(0, places[0].numel(), width):
        chosen = tuple(axis[start : start + width] for axis in places)
        # 1: the lower end first.
        sign = torch.where(lower[chosen] + upper[chosen] > 0, 1.0, -1.0).to(backward.dtype)
        rows = unit_forms(backward, value, chosen)
        first = _row_bound(backward, _turned(rows, sign), enough, solve)
        second = torch.full_like(first, -torch.inf)
        still = ~(first >= 0) if kink else torch.ones_like(first, dtype=torch.bool)
        if int(still.sum()) < WORTH_CHOOSING * len(first):
            some = tuple(axis[still] for axis in chosen)
            if some[0].numel():
                part = unit_forms(backward, value, some)
                second[still] = _row_bound(backward, _turned(part, -sign[still]), enough, solve)
        else:
            both = _row_bound(backward, _turned(rows, -sign), enough, solve)
            # No more than above: the answer must not depend on the batch.
            second = torch.where(still, both, second)
        low.append(torch.where(sign > 0, first, second))
        high.append(-torch.where(sign > 0, second, first))
    return torch.cat(low), torch.cat(high)


def open_places(backward: BackwardPass, step: GraphStep) -> list[tuple[int, Tensor]]:
    """(value, [batch, *shape] bool): inputs of the step whose boxes are worth a backward pass."""
    rule = rules_of(step.op).open
    if rule is None:
        return []
    chosen = rule(step.op, [backward.box(source) for source in step.sources])
    places = chosen if isinstance(chosen, list) else [chosen] * len(step.sources)
    # Of a value that is read twice, by the first of its inputs.
    wanted = dict(zip(step.sources[::-1], places[::-1], strict=True))
    return [(source, wanted[source]) for source in dict.fromkeys(step.sources) if source != 0]


UnitForms = tuple[int, LinearForm, Tensor, Tensor]


class UnitState(Protocol):
    """What ``unit_forms`` asks of a pass."""

    compiled: CompiledNetwork
    region: Region
    dtype: torch.dtype
    windows: dict[tuple[object, ...], tuple[Tensor, Tensor]]

    def error(self, index: int) -> Tensor | None:
        """What a unit row of an affine step's result pays there; None: nothing."""


def unit_forms(backward: UnitState, value: int, places: tuple[Tensor, ...]) -> UnitForms:
    """Rows for single neurons of a value, moved through the affine step that makes them.

    Returns (value, rows, constant, slack): neuron = rows . value + constant, up to slack.
    """
    step = backward.compiled.steps[value - 1]
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
        patch_grid = PatchGrid(
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
        slack = zero if error is None else rounding_error(error[places].to(torch.float64))
        patch = LinearForm(rows, op.in_shape, sample, patch_grid).compact()
        return step.sources[0], patch, bias, slack
    if isinstance(op, Dense):
        like = torch.empty(0, dtype=dtype, device=device)
        rows = op.cast("weight", like, lambda: op.weight)[places[1]]
        error = backward.error(value - 1)
        bias = op.bias_like(rows).expand(op.out_shape)[places[1]].to(torch.float64)
        slack = zero if error is None else rounding_error(error[places].to(torch.float64))
        return step.sources[0], LinearForm(rows, op.in_shape, sample), bias, slack
    if isinstance(op, PairTurn) and _is_map(backward.compiled, step.sources[0]):
        return _turned_units(backward, op, step.sources[0], places)
    shape = step.shape
    if _keeps_patches(op) and len(shape) == 3:
        units = torch.zeros(count, shape[0], 1, 1, dtype=dtype, device=device)
        units[torch.arange(count, device=device), places[1]] = 1.0
        size = (shape[1], shape[2])
        patch_grid = PatchGrid(
            places[2], places[3], size, (1, 1), (0, 0), (1, 1), size, windows=backward.windows
        )
        return value, LinearForm(units, shape, sample, patch_grid).compact(), zero, zero
    units = torch.zeros(count, *shape, dtype=dtype, device=device)
    units[(torch.arange(count, device=device), *places[1:])] = 1.0
    return value, LinearForm(units, shape, sample), zero, zero


def _is_map(compiled: CompiledNetwork, value: int) -> bool:
    """Whether unit rows of the value are rows of a matrix or kernels."""
    op = compiled.steps[value - 1].op if value else None
    return isinstance(op, Dense) or (isinstance(op, Convolution) and op.geometry.groups == 1)


def _turned_units(
    backward: UnitState, op: PairTurn, source: int, places: tuple[Tensor, ...]
) -> UnitForms:
    """Rows of (a -+ b) / sqrt 2 by those of a and b. Their error and slack are those of a backward
    step through the map, whose coefficients are the two shares."""
    first, second, one, two = op.partners(places[1])
    value, rows, constant, slack = unit_forms(backward, source, (places[0], first, *places[2:]))
    _, others, shift, more = unit_forms(backward, source, (places[0], second, *places[2:]))
    given = rows.coefficients
    scale, other = (_shaped(share.to(given.dtype), given) for share in (one, two))
    both = rows.with_coefficients(given * scale + others.coefficients * other)
    slack = raised(slack * one.abs() + more * two.abs())
    return value, both, constant * one + shift * two, slack


def _keeps_patches(op: Affine | Layer) -> bool:
    """Whether rows on the step's result may be patches of one place each."""
    return isinstance(op, Add | Diagonal | PairTurn) or rules_of(op).relax is not None


def _row_bound(backward: BackwardPass, rows: UnitForms, enough: float, solve: Solve) -> Tensor:
    value, coefficients, constant, slack = rows
    gained = constant - slack
    return solve(backward, value, coefficients, enough - gained) + gained


def _turned(rows: UnitForms, sign: Tensor) -> UnitForms:
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


def from_input(compiled: CompiledNetwork, value: int) -> Affine | None:
    """The affine map that alone (rearrangements apart) leads from the input to the value."""
    step = compiled.steps[value - 1]
    while rules_of(step.op).permutes and step.sources[0]:
        step = compiled.steps[step.sources[0] - 1]
    op = step.op
    if not isinstance(op, Affine):
        return None
    while step.sources[0] and rules_of(compiled.steps[step.sources[0] - 1].op).permutes:
        step = compiled.steps[step.sources[0] - 1]
    return op if step.sources[0] == 0 else None


def before_turn(compiled: CompiledNetwork, value: int) -> int:
    """The value whose pairs are turned where this one is made of it so; else the value itself."""
    step = compiled.steps[value - 1]
    turned = isinstance(step.op, PairTurn) and step.sources[0] > 0
    return step.sources[0] if turned else value


def cut_by_pixels(backward: BackwardPass, op: Dense | Convolution) -> Tensor:
    """[batch, *out_shape] bool: outputs of which the pixel box cuts the l2 ball noticeably.

    A guess that decides only what is tried. Where the ball's own extreme point eps w / |w| keeps to
    the box but for a small share of |w|^2, the ball alone is as good.
    """
    lower, upper = backward.box(0)
    x = backward.region.x.to(lower.dtype)
    room = torch.minimum(upper - x, x - lower)
    rows = op.row_norms_square().amax()
    largest = op.weight.abs().amax() / nonzero(rows.sqrt())
    reach = backward.region.epsilon.to(lower.dtype) * float(largest)
    tight = (room < _shaped(reach, room)).to(lower.dtype).reshape(-1, *op.in_shape)
    squares = op.cast("shares", lower, lambda: op.weight.square() / nonzero(rows))
    if isinstance(op, Dense):
        cut = tight.flatten(1) @ squares.T
    else:
        cut = op.geometry.apply(tight, squares)
    return cut > CUT_SHARE * (op.row_norms_square() / nonzero(rows)).to(cut)


def widest(compiled: CompiledNetwork) -> int:
    """Numbers in the largest value of one sample."""
    sizes = [torch.Size(step.shape).numel() for step in compiled.steps]
    return max([*sizes, torch.Size(compiled.input_shape).numel()])


def _row_numbers(backward: BackwardPass, value: int) -> int:
    """Numbers in one row's largest tensor: a guess that only bounds memory."""
    compiled = backward.compiled
    op = compiled.steps[value - 1].op
    if isinstance(op, Convolution) or _keeps_patches(op):
        return max(256, widest(compiled) // 4)
    return widest(compiled)


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *([1] * (like.dim() - 1)))
