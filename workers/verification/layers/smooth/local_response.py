"""Local response normalisation (LRN): x times a power of a sum over neighbouring channels.

y = x r, r = s^-beta, s = bias + alpha / size * (sum of x^2 over the window). Of a box the squares,
their sums and so r have least and largest values; y then lies between r x for these two.

**Deployed.** ONNX Runtime computes the sums of all channels one after the other, adding the square
that enters the window and taking off the one that leaves: at most size + 2 channels sums, none of
more than twice the largest s, each off by a rounding of what is held, and as many products. So
every computed sum is within gamma of 4 (size + 2 channels) + 8 times 2 max s of the real one, max
over the channels of the same place; any sum of the window's squares by itself is, too. The power is
off by ``POWER_ROUNDINGS`` of itself (STATED, not proved: ONNX Runtime 1.31 on x86 is off by less
than half of it; benchmarks/verification/kernels.py), the product by one.

**Ball.** dy = diag(r) dx - 2 beta alpha / size diag(x r / s) (window sums of x dx): with q the
largest of alpha / size |x| |x in the window|_2 / s, at most 1, and no channel in more than size
windows, |dy| <= max r (1 + 2 beta q size^(1/2)) |dx|, taken over a box, which is convex.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.normalization import LocalResponse
from workers.verification.enclosure import Enclosure, box_to_ball
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.rules import Box, LayerRules, LinearRelaxation
from workers.verification.layers.smooth.curve import OWN_ERROR, places_of
from workers.verification.numerics import (
    FEW,
    MANY,
    euclidean_norm,
    lowered,
    min_normal,
    raised,
    rounded_down,
    rounded_up,
)
from workers.verification.rounding import Rounding

__all__ = ["LARGEST", "POWER_ROUNDINGS", "RULES"]

#: Roundings of its value that a deployed power may be off by.
POWER_ROUNDINGS = 8
#: Inputs, sums, and factors (and their reciprocals) up to which nothing overflows or underflows.
LARGEST, LARGEST_SUM, LARGEST_FACTOR = 2.0**50, 2.0**110, 2.0**100


@dataclass(frozen=True)
class Factors:
    """Over a box: least and largest r of the deployed layer, float64 [batch, *shape], the largest q
    of each sample [batch], and whether r is known there at all, [batch, *shape] bool."""

    low: Tensor
    high: Tensor
    share: Tensor
    known: Tensor


def _factors(layer: LocalResponse, low: Tensor, high: Tensor, rounding: Rounding) -> Factors:
    """low, high: the box, float64."""
    reach = torch.maximum(low.abs(), high.abs())
    most = reach.square()
    least = torch.maximum(low, -high).clamp_min(0.0).square()
    share = layer.alpha / layer.size
    above = layer.window_sums(most)
    largest = raised(layer.bias + share * above, MANY)
    smallest = lowered(layer.bias + share * layer.window_sums(least), MANY)
    pull = raised(share * reach * above.sqrt() / smallest, MANY).clamp_max(1.0)
    known = (reach < LARGEST) & (largest < LARGEST_SUM)
    if rounding.is_sound:
        count = 4.0 * (layer.size + 2.0 * low.shape[1]) + 8.0
        off = raised(2.0 * rounding.deployed_gamma(count) * largest.amax(1, keepdim=True), MANY)
        largest, smallest = raised(largest + off), lowered(smallest) - raised(off)
        known = known & (smallest > 0.5 * layer.bias)
        smallest = smallest.clamp_min(0.25 * layer.bias)
    # pow is off by some units of its exponent's product here.
    power = rounding.deployed_gamma(POWER_ROUNDINGS + 1.0) + 64.0 * OWN_ERROR
    power = power if rounding.is_sound else 0.0
    first, last = largest.pow(-layer.beta), smallest.pow(-layer.beta)
    known = known & (first > 1.0 / LARGEST_FACTOR) & (last < LARGEST_FACTOR)
    return Factors(
        lowered(first * (1.0 - power)),
        raised(last * (1.0 + power)),
        pull.nan_to_num(1.0, 1.0).flatten(1).amax(1),
        known,
    )


def _value(layer: LocalResponse, x: Tensor) -> Tensor:
    result: Tensor = layer(x.to(torch.float64))
    return result.to(x.dtype)


def _products(low: Tensor, high: Tensor, factors: Factors) -> Box:
    """Of x r, x in a box; products that underflow are off by less than the least normal number."""
    tiny = 2.0 * min_normal(torch.float32)
    lower = torch.where(low > 0, factors.low, factors.high) * low
    upper = torch.where(high < 0, factors.low, factors.high) * high
    more = OWN_ERROR * torch.maximum(lower.abs(), upper.abs()) + tiny
    unknown = ~factors.known
    return (
        (lower - more).masked_fill(unknown, -math.inf),
        (upper + more).masked_fill(unknown, math.inf),
    )


def _forward(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    """The box of products. The ball grows as steeply as the layer gets where numbers may be; where
    nothing is known of these, nothing is concluded."""
    (state,) = inputs
    layer, dtype = step.layer(LocalResponse), state.centre.dtype
    lower = upper = None
    if state.lower is not None and state.upper is not None:
        low, high = state.lower.to(torch.float64), state.upper.to(torch.float64)
        ends = _products(low, high, _factors(layer, low, high, rounding))
        lower, upper = rounded_down(ends[0], dtype), rounded_up(ends[1], dtype)
    low, high = places_of(state)
    factors, centre = _factors(layer, low, high, rounding), _value(layer, state.centre)
    valid = state.valid & factors.known.flatten(1).all(1)
    steep = factors.high.flatten(1).amax(1)
    steep = steep * (1.0 + 2.0 * layer.beta * factors.share * math.sqrt(layer.size))
    radius = steep * state.radius
    if rounding.is_sound:
        reach = torch.maximum(low.abs(), high.abs())
        exact = _factors(layer, low, high, Rounding.ignored())
        # The deployed factor is farthest from the real one where the sum is least, above it: the
        # power is convex and falls.
        beside = factors.high - lowered(exact.high, 2 * FEW)
        products = 2.0 * (rounding.deployed + rounding.own) + OWN_ERROR
        off = raised((beside + products * factors.high) * reach)
        radius = radius + euclidean_norm(off + min_normal(torch.float32))
    radius = raised(radius, MANY).nan_to_num(math.inf, math.inf)
    radius = torch.where(torch.isfinite(state.radius), radius, state.radius)
    return box_to_ball(Enclosure(centre, radius, lower, upper, valid))


def _lines(
    layer: LocalResponse, lower: Tensor, upper: Tensor, rule: str, rounding: Rounding
) -> LinearRelaxation:
    """For every number of the box, whatever the others are: x r lies between r_low x and r_high x
    where x has one sign, else within (r_high - r_low) / 2 |x| of the middle. The slopes are
    rounded: what they lack of the factors is paid."""
    low, high = lower.to(torch.float64), upper.to(torch.float64)
    factors, dtype = _factors(layer, low, high, rounding), lower.dtype
    middle = 0.5 * (factors.low + factors.high)
    below = torch.where(low >= 0, factors.low, torch.where(high <= 0, factors.high, middle))
    above = torch.where(low >= 0, factors.high, torch.where(high <= 0, factors.low, middle))
    reach = torch.maximum(low.abs(), high.abs())
    slopes, shifts = [], []
    for wanted, side in ((below, -1), (above, 1)):
        slope = wanted.to(dtype)
        wide = slope.to(torch.float64)
        # (r - slope) x is largest at an end of x and of r.
        ends = [side * (r - wide) * x for r in (factors.low, factors.high) for x in (low, high)]
        most = torch.stack(ends).amax(0).clamp_min(0.0)
        lost = 4.0 * OWN_ERROR * factors.high * reach + 2.0 * min_normal(torch.float32)
        most = raised(most) + lost * rounding.is_sound
        slopes.append(slope)
        shifts.append(rounded_up(most.masked_fill(~factors.known, math.inf), dtype))
    free = torch.zeros_like(lower, dtype=torch.bool)
    return LinearRelaxation(slopes[0], -shifts[0], slopes[1], shifts[1], free, 0.0)


def _open(layer: LocalResponse, boxes: list[Box]) -> Tensor:
    """Where the factor is not known well for the number that it meets."""
    ((lower, upper),) = boxes
    low, high = lower.to(torch.float64), upper.to(torch.float64)
    factors = _factors(layer, low, high, Rounding.ignored())
    return (factors.high - factors.low) * torch.maximum(low.abs(), high.abs()) > 1e-4


RULES: dict[type[Layer], LayerRules] = {
    LocalResponse: LayerRules(value=_value, forward=_forward, relax=_lines, open=_open),
}
