"""x / sqrt(mean of x^2 + eps) over groups of n numbers: what layer normalisation ends in.

Number by number its extremes over boxes, and lines around them: ``groups``.

Planes that move with the whole group: y = t r with r = (Q + eps)^(-1/2), Q the mean square, and
    t r = m r + r0 t - m r0 + (t - m)(r - r0)
for any m and r0, with |(t - m)(r - r0)| small of second order. r is convex and falls in Q: above a
tangent, below a chord; Q is below its numbers' chords and above their tangents. So r lies between
two linear functions of the group.

Slopes: with y = t r the derivative is r (I - y y^T / n), symmetric, with eigenvalues from 0 to r.

What the DEPLOYED network may be off by. t' are its own numbers, and s' its root:
* A mean of n squares of t' meets n + 2 roundings; so do the nodes that exporters write.
* LayerNormalization takes the variance V of y' (t' = y' less its mean m). Releases of ONNX Runtime
  did that in one pass, E[y^2] - m^2, off by 3 gamma_(n+4) E[y^2]: sum of squares, mean, its square.
  1.31 updates: n V <- n V + d (y - m_k), d = y - m_(k-1), in parts that are joined at the end. Its
  means are off by e_k <= u (S_k + (3 log k + 6) S_k / k), S_k the sum of the first k |y|
  (``layers.affine``); the squares d^2 (k - 1) / k sum to n V. So d e_k + d e_(k-1) sum to at most
  2 u S sqrt(n V) (sqrt n + 10) by Cauchy-Schwarz, for V 2 g sqrt(E[y^2] V), beside gamma_(n+8) V
  for the sum itself; parts and their joins (2 d w (e + e'), the w sum to n) at most sqrt(3 / 2)
  times that. In two passes V is off by less than either.
* InstanceNormalization, and nodes that compute c = gain / s' first, give c y' + (bias - c m'). That
  rounds by c (u |y'| + 2 u |m'|) beside bias and sum. So t' is here y' - m' + e, |e| <= u |y'| +
  3 u |m'|, which ``layers.affine`` counts for n >= 2; Q of t' moves by 7 u E[y^2]. In nodes m' may
  be another mean than the variance's: Q moves by the square of their distance.
All of it is at most 4 g E[y^2], g = gamma of n + 10 sqrt n + 16. E[y^2] is Q of t' and the square
of the mean, up to g of it. So (s')^2 = (Q + eps)(1 + h), |h| <= 5 g (1 + mean^2 / (Q + eps)) for
g <= 0.1, and 1 / s' is off by at most h / 2 + 3 h^2 / 4 of itself for |h| <= 1/2. Where h may be
larger, which means that the variance may cancel away, nothing is certified.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.normalization import Standardize
from workers.verification.backward.linear_form import LinearForm
from workers.verification.enclosure import Enclosure, box_to_ball
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.rules import BackwardState, Box, Carried, LayerRules
from workers.verification.layers.smooth.groups import OWN, Group, line_above
from workers.verification.numerics import (
    LONGEST_SUM,
    MANY,
    lowered,
    magnitude,
    min_normal,
    per_sample,
    raised,
    rough_norm,
    rounded_down,
    rounded_up,
    sum_error,
    total,
)
from workers.verification.rounding import Rounding

__all__ = ["RULES"]

#: Norms of inputs up to which no sum of squares overflows float32, times the 2^20 that a file may
#: multiply it with on the way to the root (``models.onnx.operators.euclidean``).
LARGEST = 1e15
#: Largest share by which the deployed variance, with eps, may be off.
LARGEST_SHARE = 0.5
#: Roundings of a mean beside its sum: square, quotient, eps; and of what follows: root, reciprocal
#: and product, or quotient.
OF_MEAN, OF_RESULT = 8, 6
#: Squares lost below the least normal number may change a variance by so many of it: up to 2^20 at
#: each of the few operators on the way to the root.
LOST_SQUARES = 2.0**24
#: A box is worth tightening where it is wider than this share of the root of the mean square.
OPEN = 1e-3


def _value(layer: Standardize, x: Tensor, y: Tensor) -> Tensor:
    """Evaluated in float64 and rounded to the input's dtype."""
    result: Tensor = layer(x.to(torch.float64), y)
    return result.to(x.dtype)


def _image(layer: Standardize, boxes: list[Box]) -> Box:
    """The image of boxes in real arithmetic, as training takes it."""
    low, high = Group(layer, *boxes[0]).image()
    return low, high


def _ends(state: Enclosure) -> Box:
    """The box in float64; around the ball where there is none."""
    if state.lower is None or state.upper is None:
        centre = state.centre.to(torch.float64)
        reach = per_sample(state.radius, centre) + OWN * centre.abs()
        return centre - reach, centre + reach
    return state.lower.to(torch.float64), state.upper.to(torch.float64)


def _share(group: Group, beside: Box, same: bool, rounding: Rounding) -> Tensor:
    """By what share the deployed 1 / s' may be off, for every group; infinite where |h| may be more
    than 1/2. same: whether it is made of the numbers' own squares; else as the variance of those in
    the box ``beside``."""
    if not rounding.is_sound:
        return torch.zeros_like(group.least)
    count, floor = group.count, group.least + group.layer.eps
    share = torch.full_like(floor, rounding.deployed_gamma(count + OF_MEAN))
    if not same:
        low, high = (group.mean(end.to(torch.float64)) for end in beside)
        size = group.mean(torch.maximum(beside[0].abs(), beside[1].abs()).to(torch.float64))
        largest = torch.maximum(low.abs(), high.abs()) + sum_error(count) * size
        gamma = rounding.deployed_gamma(count + 10.0 * math.sqrt(count) + 16.0)
        share = 5.0 * gamma * (1.0 + raised(largest.square() / floor, count + 8))
    share = raised(share + LOST_SQUARES * min_normal(torch.float32) / floor, 8)
    off = raised(0.5 * share + 0.75 * share.square() + rounding.deployed_gamma(OF_RESULT), 8)
    return torch.where(share <= LARGEST_SHARE, off, torch.inf)


def _error(image: Box, share: Tensor, rounding: Rounding) -> Tensor:
    """How far a deployed value may be from the real one of the deployed numbers, [batch, *shape].

    The result rounds again: (1 + h)(1 + few u) is in twice those.
    """
    size = torch.maximum(image[0].abs(), image[1].abs())
    return raised(2.0 * (size * rounding.deployed_gamma(OF_RESULT)) + size * share, 8) + (
        4 * rounding.underflow
    )


def _forward(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    """Boxes by the extremes above. The ball by the steepest slope between it and the box: within a
    convex set two results differ by at most its largest r times the numbers' distance."""
    state, beside = inputs
    layer, dtype = step.layer(Standardize), state.centre.dtype
    group, same = Group(layer, *_ends(state)), step.sources[0] == step.sources[1]
    share = _share(group, _ends(beside), same, rounding)
    image = group.image()
    error = _error(image, share, rounding)
    lower, upper = rounded_down(image[0] - error, dtype), rounded_up(image[1] + error, dtype)
    centre = _value(layer, state.centre, beside.centre)
    middle = state.centre.to(torch.float64)
    hull = Group(layer, torch.minimum(group.low, middle), torch.maximum(group.high, middle))
    steep = raised(torch.rsqrt(hull.least + layer.eps), 8).flatten(1).amax(1)
    # Each group's results have a norm of at most sqrt(n), here and there.
    size = math.sqrt(torch.Size(step.shape).numel())
    off = raised(share, 8).flatten(1).amax(1) + 2.0 * rounding.deployed_gamma(OF_RESULT)
    own = 64.0 * rounding.own + OWN + sum_error(group.count)
    off = size * (off + own * rounding.is_sound)
    radius = raised(steep * state.radius + off + 4 * size * rounding.underflow, MANY)
    radius = torch.where(torch.isinf(state.radius), torch.inf, radius)
    valid = state.valid & beside.valid
    if rounding.is_sound:
        valid = valid & torch.isfinite(share).flatten(1).all(1)
        for low, high in (_ends(state), _ends(beside)):
            valid = valid & (rough_norm(torch.maximum(low.abs(), high.abs())) < LARGEST)
    return box_to_ball(Enclosure(centre, radius, lower, upper, valid))


@dataclass(frozen=True)
class Planes:
    """What a step's rows need, float64, [batch, *shape], or with 1 in the place of the axes.

    below, above: slope and intercept of lines that hold number by number. middle, half: m, and how
    far t is from it; root, spread: r0 and |r - r0|; under, over: (slopes on the group, constant) of
    linear functions below and above r. share: of 1 / s', one number for a group; error: what each
    deployed value is off by beside it; highest: r; far: |t|; size: |y|.
    """

    below: tuple[Tensor, Tensor]
    above: tuple[Tensor, Tensor]
    middle: Tensor
    half: Tensor
    root: Tensor
    spread: Tensor
    under: tuple[Tensor, Tensor]
    over: tuple[Tensor, Tensor]
    share: Tensor
    error: Tensor
    highest: Tensor
    far: Tensor
    size: Tensor


def _planes(group: Group, share: Tensor, rounding: Rounding) -> Planes:
    low, high, eps, count = group.low, group.high, group.layer.eps, group.count
    above = line_above(group, low, high)
    # y(-t) = -y(t).
    slope, intercept = line_above(group, -high, -low)
    middle = 0.5 * low + 0.5 * high
    half = raised(torch.maximum(high - middle, middle - low), 4)
    far = torch.maximum(low.abs(), high.abs())
    least, most = group.least, group.most
    highest = raised(torch.rsqrt(least + eps), 8)
    lowest = lowered(torch.rsqrt(most + eps), 8)
    root = 0.5 * (highest + lowest)
    spread = raised(torch.maximum(highest - root, root - lowest), 4) + OWN * root
    at = torch.clamp(group.mean(middle.square()), least, most)
    tangent = -0.5 * torch.rsqrt(at + eps) / (at + eps)
    under_slopes = tangent * (low + high) / count
    under = torch.rsqrt(at + eps) - tangent * (at + group.mean(low * high))
    chord = torch.where(most > least, (lowest - highest) / (most - least).clamp_min(1e-300), 0.0)
    chord = torch.maximum(chord, -0.5 * raised(highest**3))
    over_slopes = 2.0 * chord * middle / count
    # The chord as it is computed is above r where it is so at both ends.
    over = torch.maximum(highest - chord * least, lowest - chord * most)
    over = over - chord * group.mean(middle.square())
    lost = sum_error(count)
    steep = torch.maximum(tangent.abs(), chord.abs())
    reach = lost * (highest + 4.0 * steep * (most + group.mean(far.square())))
    image = group.image()
    return Planes(
        below=(slope, -intercept),
        above=above,
        middle=middle,
        half=half,
        root=root,
        spread=spread,
        under=(under_slopes, under - reach),
        over=(over_slopes, over + reach),
        share=share,
        error=_error(image, torch.zeros_like(share), rounding),
        highest=highest,
        far=far,
        size=torch.maximum(image[0].abs(), image[1].abs()),
    )


def _backward(state: BackwardState, index: int, step: GraphStep, rows: LinearForm) -> Carried:
    """Group by group the planes that lose less, in float64."""
    layer, rows = step.layer(Standardize), rows.dense()
    if index not in state.made:
        boxes = [state.box(source) for source in step.sources]
        group = Group(layer, *(end.to(torch.float64) for end in boxes[0]))
        same = step.sources[0] == step.sources[1]
        share = _share(group, boxes[1], same, state.rounding)
        state.made[index] = _planes(group, share, state.rounding)
    planes: Planes = state.made[index]
    axes, pick = layer.batched_axes(), rows.pick
    c = rows.coefficients.to(torch.float64)

    def summed(x: Tensor) -> Tensor:
        return x.sum(axes, keepdim=True)

    positive = c.clamp_min(0.0)
    negative = c - positive
    middle, half, far = pick(planes.middle), pick(planes.half), pick(planes.far)
    below, above = ([pick(part) for part in line] for line in (planes.below, planes.above))
    plain = positive * below[0] + negative * above[0]
    plain_constant = summed(positive * below[1] + negative * above[1])
    # What a line loses is its distance to the other one, for the same number.
    between = (above[0] - below[0]) * middle + above[1] - below[1]
    plain_loss = 0.5 * summed(c.abs() * between)

    root, spread = pick(planes.root), pick(planes.spread)
    under, over = ([pick(part) for part in plane] for plane in (planes.under, planes.over))
    k = summed(c * middle)
    rises, falls = k.clamp_min(0.0), k.clamp_max(0.0)
    whole = root * c + rises * under[0] + falls * over[0]
    moved = summed(c.abs() * half)
    gap = spread * moved
    whole_constant = rises * under[1] + falls * over[1] - k * root - gap
    apart = over[1] - under[1] + summed((over[0] - under[0]) * middle)
    whole_loss = gap + 0.5 * k.abs() * apart

    better = whole_loss < plain_loss
    result = LinearForm(
        torch.where(better, whole, plain).to(rows.coefficients.dtype), rows.shape, rows.sample
    )
    constant = total(torch.where(better, whole_constant, plain_constant))
    # Magnitudes of all that was added up, and what rounding did to the coefficients by it.
    parts = summed((c * middle).abs())
    steep = summed(torch.maximum(under[0].abs(), over[0].abs()) * far)
    largest = torch.maximum(under[1].abs(), over[1].abs())
    held = torch.where(
        better,
        parts * (largest + steep + 2.0 * root + spread) + summed(c.abs() * root * far) + gap,
        summed(positive * below[1].abs() - negative * above[1].abs() + plain.abs() * far),
    )
    size = magnitude(held) + magnitude(c * pick(planes.size))
    lost = torch.zeros_like(constant)
    if state.rounding.is_sound:
        # h is one number for the group: (c . y) h, and |c . y| = r |c . t|.
        alone = summed(c.abs() * pick(planes.size))
        together = pick(planes.highest) * (k.abs() + sum_error(LONGEST_SUM) * parts + moved)
        common = pick(planes.share) * torch.minimum(alone, raised(together, MANY))
        lost = magnitude(common) + magnitude(c * pick(planes.error))
        lost = lost + magnitude(held) * sum_error(LONGEST_SUM)
        lost = raised(lost + state.rounded(step.sources[0], result), MANY)
    zero = result.with_coefficients(torch.zeros_like(result.coefficients))
    return [result, zero], constant - lost, size + lost


def _open(layer: Standardize, boxes: list[Box]) -> list[Tensor]:
    """Where numbers move enough. What is beside them only says how they are rounded."""
    low, high = (end.to(torch.float64) for end in boxes[0])
    group = Group(layer, low, high)
    first = high - low > OPEN * torch.sqrt(group.mean(group.far) + layer.eps)
    return [first, torch.zeros_like(first)]


RULES: dict[type[Layer], LayerRules] = {
    Standardize: LayerRules(
        value=_value,
        forward=_forward,
        image=_image,
        backward=_backward,
        open=_open,
    ),
}
