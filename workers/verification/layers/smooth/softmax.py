"""Softmax inside a network: s = exp(u) over the sum of its group's.

Boxes: s_i rises in u_i and falls in the others, so its extremes are at corners. Planes: with p =
exp(u - a) for a number a, P the sum of a group and R = 1 / P,
    s_i = p_i R = q_i R + R0 p_i - q_i R0 + (p_i - q_i)(R - R0)
for any q and R0, where the last product is of second order in the box. exp is convex, so every p
lies above a tangent and below a chord, and so does P; R is convex and falls in P. Where a box is
wide, the box of s itself is the better plane. The Jacobian diag(s) - s s^T has a norm of at most
1/2 (its rows' magnitudes sum to 2 s (1 - s)).

Deployed: exp of a rounded difference -t = u - max is off by (t + few) unit roundoffs of itself, the
kernel's few. s t <= 1 / e, and sums of s t are at most log n: with the n roundings of the sum, s is
off by at most ``KERNEL_ERROR`` + gamma_(2n+8) s, where the kernel is as good as stated there: no
proved bound, a measured one like the others' (a test tries it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.normalization import Softmax
from workers.verification.backward.linear_form import LinearForm
from workers.verification.enclosure import Enclosure, box_to_ball
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.rules import BackwardState, Box, Carried, LayerRules
from workers.verification.layers.smooth.curves import KERNEL_ERROR
from workers.verification.numerics import (
    LONGEST_SUM,
    MANY,
    lowered,
    magnitude,
    raised,
    rounded_down,
    rounded_up,
    sum_error,
    total,
)
from workers.verification.rounding import Rounding

__all__ = ["RULES"]

#: Inputs up to which no difference overflows float32.
LARGEST = 1e30
#: Logarithms of the least sum and the largest exponential for which planes are made.
MODERATE = 100.0
#: Differences whose exponentials are finite in any arithmetic.
FAR = 80.0
#: A box is worth tightening where it is wider.
OPEN = 1e-3


def _value(layer: Softmax, u: Tensor) -> Tensor:
    """Evaluated in float64 and rounded to the input's dtype."""
    result: Tensor = layer(u.to(torch.float64))
    return result.to(u.dtype)


def _box(axes: list[int], low: Tensor, high: Tensor) -> Box:
    """The image of a box, rounded outward (exp of differences is off by 1e-12 at most).

    s_i = 1 / (1 + sum of the others' exponentials over its own). Ends that are far apart have no
    common factor: the others' sums are taken in units of the largest of their own ends, and what
    underflows there, or is cut off, makes the box wider.
    """
    bottom, top = low.amax(axes, keepdim=True), high.amax(axes, keepdim=True)
    below, above = torch.exp(low - bottom), torch.exp(high - top)
    most = raised(above.sum(axes, keepdim=True), MANY) - lowered(above)
    least = (lowered(below.sum(axes, keepdim=True), MANY) - raised(below)).clamp_min(0.0)
    upper = 1.0 + lowered(least * torch.exp((bottom - high).clamp_max(FAR)))
    apart = top - low
    lower = 1.0 + raised(most * torch.exp(apart.clamp_max(FAR)))
    lower = torch.where(apart > FAR, 0.0, lowered(1.0 / lower))
    return lower, raised(1.0 / upper).clamp_max(1.0)


def _image(layer: Softmax, boxes: list[Box]) -> Box:
    low, high = boxes[0]
    lower, upper = _box(layer.batched_axes(), low, high)
    return lower, upper


def _count(layer: Softmax, shape: tuple[int, ...]) -> int:
    return math.prod(shape[axis] for axis in layer.axes)


def _error(size: Tensor, count: int, rounding: Rounding) -> Tensor:
    """How far deployed values may be off, for values up to ``size``."""
    if not rounding.is_sound:
        return torch.zeros_like(size)
    return raised(KERNEL_ERROR + size * rounding.deployed_gamma(2.0 * count + 8.0))


def _forward(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    """Corners; the ball shrinks to half."""
    (state,) = inputs
    layer, dtype = step.layer(Softmax), state.centre.dtype
    count, size = _count(layer, step.shape), math.sqrt(torch.Size(step.shape).numel())
    lower = upper = None
    valid = state.valid
    largest = state.centre.abs().flatten(1).amax(1).to(torch.float64) + state.radius
    if state.lower is not None and state.upper is not None:
        low, high = state.lower.to(torch.float64), state.upper.to(torch.float64)
        lower, upper = _box(layer.batched_axes(), low, high)
        error = _error(upper, count, rounding)
        # No exp is below 0.
        lower = rounded_down((lower - error).clamp_min(0.0), dtype).clamp_min(0.0)
        upper = rounded_up(upper + error, dtype)
        boxed = torch.maximum(low.abs(), high.abs()).flatten(1).amax(1)
        largest = torch.fmin(largest, boxed)
    one = torch.ones((), dtype=torch.float64, device=state.centre.device)
    off = size * (float(_error(one, count, rounding)) + 64.0 * rounding.own)
    radius = raised(0.5 * state.radius + off + size * sum_error(count) * rounding.is_sound, MANY)
    if rounding.is_sound:
        valid = valid & (largest < LARGEST)
    return box_to_ball(Enclosure(_value(layer, state.centre), radius, lower, upper, valid))


@dataclass(frozen=True)
class Planes:
    """What a step's rows need, float64, [batch, *shape], or with 1 in the place of the axes.

    box: of s. at: a; place: the middle of u - a; lines, chords: slope and intercept below and above
    p, as functions of u - a; middle, half: q and |p - q|; root, spread: R0 and |R - R0|; under,
    over: (slopes on u - a, constant) below and above R. usable: whether all of this is made of
    moderate numbers; far: |u - a|; error: of the deployed value.
    """

    box: Box
    at: Tensor
    place: Tensor
    lines: tuple[Tensor, Tensor]
    chords: tuple[Tensor, Tensor]
    middle: Tensor
    half: Tensor
    root: Tensor
    spread: Tensor
    under: tuple[Tensor, Tensor]
    over: tuple[Tensor, Tensor]
    usable: Tensor
    far: Tensor
    error: Tensor


def _planes(layer: Softmax, low: Tensor, high: Tensor, rounding: Rounding) -> Planes:
    axes = layer.batched_axes()
    box = _box(axes, low, high)
    at = (0.5 * low + 0.5 * high).amax(axes, keepdim=True)
    usable = ((high - at).amax(axes, keepdim=True) <= MODERATE) & (
        (low - at).amin(axes, keepdim=True) >= -MODERATE
    )
    # Only moderate numbers are used.
    below, above = ((end - at).clamp(-MODERATE, MODERATE) for end in (low, high))
    at_low, at_high = torch.exp(below), torch.exp(above)
    middle = 0.5 * below + 0.5 * above
    tangent = torch.exp(middle)
    lines = (tangent, tangent * (1.0 - middle))
    width = torch.where(above > below, above - below, 1.0)
    slope = torch.where(above > below, (at_high - at_low) / width, tangent)
    chords = (slope, torch.maximum(at_low - slope * below, at_high - slope * above))
    lost = sum_error(LONGEST_SUM)
    reach = torch.maximum(below.abs(), above.abs())
    chords = (chords[0], chords[1] + lost * (at_high + slope * reach))
    lines = (lines[0], lines[1] - lost * tangent * (1.0 + middle.abs() + reach))
    least = lowered(at_low.sum(axes, keepdim=True), MANY).clamp_min(1e-300)
    most = raised(at_high.sum(axes, keepdim=True), MANY)
    highest, lowest = raised(1.0 / least), lowered(1.0 / most)
    root = 0.5 * (highest + lowest)
    spread = raised(torch.maximum(highest - root, root - lowest))
    p = torch.clamp(tangent.sum(axes, keepdim=True), least, most)
    steep = -1.0 / p.square()
    sums = [part.sum(axes, keepdim=True) for part in (chords[1], lines[1])]
    under = 1.0 / p - steep * p + steep * sums[0]
    chord = -highest * lowest
    over = torch.maximum(highest - chord * least, lowest - chord * most) + chord * sums[1]
    sizes = [part.abs().sum(axes, keepdim=True) for part in (chords[1], lines[1])]
    under = under - lost * (2.0 / p - steep * sizes[0])
    over = over + lost * (2.0 * highest - chord * (sizes[1] + 2.0 * most))
    count = _count(layer, tuple(low.shape[1:]))
    return Planes(
        box=box,
        at=at,
        place=middle,
        lines=lines,
        chords=chords,
        middle=0.5 * at_low + 0.5 * at_high,
        half=raised(0.5 * (at_high - at_low) + lost * at_high),
        root=root,
        spread=spread,
        under=(steep * slope, under),
        over=(chord * tangent, over),
        usable=usable,
        far=reach,
        error=_error(box[1], count, rounding),
    )


def _backward(state: BackwardState, index: int, step: GraphStep, rows: LinearForm) -> Carried:
    """Group by group the box or the planes, whatever loses less, in float64."""
    layer, rows = step.layer(Softmax), rows.dense()
    if index not in state.made:
        low, high = (end.to(torch.float64) for end in state.box(step.sources[0]))
        state.made[index] = _planes(layer, low, high, state.rounding)
    planes: Planes = state.made[index]
    axes, pick = layer.batched_axes(), rows.pick
    c = rows.coefficients.to(torch.float64)

    def summed(x: Tensor) -> Tensor:
        return x.sum(axes, keepdim=True)

    positive = c.clamp_min(0.0)
    negative = c - positive
    lower, upper = (pick(end) for end in planes.box)
    plain_constant = summed(positive * lower + negative * upper)
    plain_loss = 0.5 * summed(c.abs() * (upper - lower))

    root, spread, half, at = (
        pick(part) for part in (planes.root, planes.spread, planes.half, planes.at)
    )
    lines, chords, under, over = (
        [pick(part) for part in pair]
        for pair in (planes.lines, planes.chords, planes.under, planes.over)
    )
    k = summed(c * pick(planes.middle))
    rises, falls = k.clamp_min(0.0), k.clamp_max(0.0)
    whole = root * (positive * lines[0] + negative * chords[0])
    whole = whole + rises * under[0] + falls * over[0]
    gap = spread * summed(c.abs() * half)
    own = root * summed(positive * lines[1] + negative * chords[1])
    constant = own + rises * under[1] + falls * over[1] - k * root - gap
    # At the box's middle.
    place = pick(planes.place)
    between = (chords[0] - lines[0]) * place + chords[1] - lines[1]
    apart = over[1] - under[1] + summed((over[0] - under[0]) * place)
    whole_loss = gap + 0.5 * root * summed(c.abs() * between) + 0.5 * k.abs() * apart
    better = pick(planes.usable) & (whole_loss < plain_loss)
    zero = torch.zeros_like(whole)
    coefficients = torch.where(better, whole, zero)
    result = LinearForm(coefficients.to(rows.coefficients.dtype), rows.shape, rows.sample)
    gained = total(torch.where(better, constant, plain_constant) - summed(coefficients * at))
    largest = torch.maximum(under[1].abs(), over[1].abs()) + root + spread
    slopes = torch.maximum(under[0].abs(), over[0].abs())
    reach = pick(planes.far) + at.abs()
    parts = summed((c * pick(planes.middle)).abs())
    ends = torch.maximum(lines[1].abs(), chords[1].abs()) + chords[0] * reach
    held = parts * (largest + summed(slopes * reach)) + root * summed(c.abs() * ends) + gap
    held = torch.where(better, held, summed(c.abs() * upper))
    size = magnitude(held)
    lost = torch.zeros_like(gained)
    if state.rounding.is_sound:
        lost = magnitude(c * pick(planes.error)) + size * sum_error(LONGEST_SUM)
        lost = raised(lost + state.rounded(step.sources[0], result), MANY)
    return [result], gained - lost, size + lost


def _open(layer: Softmax, boxes: list[Box]) -> Tensor:
    low, high = boxes[0]
    return high - low > OPEN


RULES: dict[type[Layer], LayerRules] = {
    Softmax: LayerRules(
        value=_value, forward=_forward, image=_image, backward=_backward, open=_open
    ),
}
