"""Pools over windows: the average is an affine map, the maximum has rules of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.base import Layer
from models.layers.kinds import AvgPool2d, MaxPool2d
from workers.verification.backward.linear_form import LinearForm
from workers.verification.graph.affine import Affine, Inner
from workers.verification.graph.affine_maps import Pooling
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.exact import monotone
from workers.verification.layers.rules import BackwardState, Ball, Carried, LayerRules
from workers.verification.numerics import LONGEST_SUM, magnitude, raised, sum_error, total
from workers.verification.rounding import Rounding, unit_roundoff

__all__ = ["CONSTANT_SHARE", "RULES", "overlap_of"]


#: The pass takes ``sum_error(LONGEST_SUM)`` of a constant's magnitude; products of this rule are
#: rounded to float32, so that 2^-22 of it has to go.
CONSTANT_SHARE = 2.0**-22 / sum_error(LONGEST_SUM)


def _average(layer: AvgPool2d, shape: tuple[int, ...]) -> Affine:
    zero = torch.zeros((), dtype=torch.float64)
    terms = layer.kernel[0] * layer.kernel[1] + 4
    out = layer.output_shape(shape)
    # The sum over a window is held before it is divided.
    inner = Inner(float(layer.kernel[0] * layer.kernel[1]))
    return Pooling(shape, out, zero, zero, terms, layer=layer, inner=inner)


def overlap_of(layer: MaxPool2d, shape: tuple[int, ...]) -> int:
    """Largest number of pooling windows that one input lies in; its root bounds the
    Lipschitz constant."""
    pool = AvgPool2d(
        kernel=layer.kernel, stride=layer.stride, padding=layer.padding, dilation=layer.dilation
    )
    x = torch.zeros(1, 1, *shape[1:], dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        (counts,) = torch.autograd.grad(pool.window_sums(x).sum(), x)
    return max(1, int(counts.max()))


def _growth(step: GraphStep, centre_norm: Tensor, rounding: Rounding) -> tuple[float, float]:
    return raised(step.overlap**0.5), 0.0


def _maximum(state: BackwardState, index: int, step: GraphStep, rows: LinearForm) -> Carried:
    """max >= the input with the highest lower bound; max <= that input, or the highest upper
    bound where another input may exceed it."""
    op, rows = step.layer(MaxPool2d), rows.dense()
    source = state.shape_of(step.sources[0])
    lower, upper = state.box(step.sources[0])
    top, left, bottom, right = op.padding
    frame = (left, right, top, bottom)
    padded_lower = F.pad(lower, frame, value=-torch.inf)
    padded_upper = F.pad(upper, frame, value=-torch.inf)
    best, place = F.max_pool2d(
        padded_lower, op.kernel, op.stride, 0, op.dilation, return_indices=True
    )
    highest = F.max_pool2d(padded_upper, op.kernel, op.stride, 0, op.dilation)
    # Each window without its own winner: overlapping windows share inputs, not winners.
    members = _window_members(op, padded_upper.shape[3], tuple(place.shape[2:])).to(place.device)
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
    size = magnitude(negative * rows.pick(highest)) * CONSTANT_SHARE
    result = LinearForm(spread.contiguous(), source, rows.sample)
    if state.rounding.is_sound:
        # One input gathers the coefficients of all windows that it won.
        reach = torch.maximum(best.abs(), highest.abs())
        spread_size = magnitude(rows.coefficients * rows.pick(reach))
        gained = gained - spread_size * (4 * step.overlap * unit_roundoff(state.dtype))
    return [result], gained, size


def _window_members(op: MaxPool2d, width: int, grid: tuple[int, ...]) -> Tensor:
    """Flat places (in the padded map of this width) of every window's inputs, [h, w, k_h k_w]."""
    rows = torch.arange(grid[0])[:, None, None, None] * op.stride[0]
    rows = rows + torch.arange(op.kernel[0])[:, None] * op.dilation[0]
    columns = torch.arange(grid[1])[:, None, None] * op.stride[1]
    columns = columns + torch.arange(op.kernel[1]) * op.dilation[1]
    return (rows * width + columns).flatten(2)


BALL = Ball(_growth, reads_norm=False)

RULES: dict[type[Layer], LayerRules] = {
    AvgPool2d: LayerRules(affine=_average),
    MaxPool2d: LayerRules(forward=monotone(BALL), ball=BALL, backward=_maximum, overlap=overlap_of),
}
