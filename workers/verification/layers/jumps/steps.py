"""Sign, Floor, Ceil and Round: constant between their jumps, never falling, exact in float32.

Every deployed value z' of the input lies in its box [l, u], roundings included. A step rounds
nothing and never falls, so f(z') is in [f(l), f(u)], whatever z' is: where no jump lies between the
ends that is ONE number, and what was rounded before goes no further. Else it is the hull of both
sides, however near to the jump the real network's value stays on one of them.

No constant bounds how far a jump carries a small move: there is no rule for a ball alone, and
bounds that need one do not cover these layers. Of two numbers a and b in a box, f(b) - f(a) =
0 (b - a) + e with |e| <= f(u) - f(l), which is what a deviation is carried by (``deviation.walk``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.layers.activations import Ceil, Floor, Round, Sign, Step
from models.layers.base import Layer
from workers.verification.enclosure import Enclosure, box_to_ball
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.rules import (
    MIN_SLOPE,
    Box,
    LayerRules,
    LinearRelaxation,
    Secants,
)
from workers.verification.layers.smooth.curve import places_of
from workers.verification.numerics import euclidean_norm, raised, slack
from workers.verification.rounding import Rounding

__all__ = ["RULES", "value"]

#: The largest number around which lines are drawn: halves of these are numbers of float32; and of
#: a Sign.
LARGEST, LARGEST_OF_SIGN = 2.0**22, 2.0**60
#: Slopes of lines, at most.
STEEPEST = 1e18

#: Where a step jumps from a to the next number b, (a, b) -> place: one row per layer.
JUMPS: dict[type[Layer], Callable[[Tensor, Tensor], Tensor]] = {
    Sign: lambda a, b: torch.zeros_like(a),
    Floor: lambda a, b: b,
    Ceil: lambda a, b: a,
    Round: lambda a, b: a + 0.5,
}
#: The least and the largest f(z) - z of those that have a jump in every interval of length 1.
OFFSETS: dict[type[Layer], tuple[float, float]] = {
    Floor: (-1.0, 0.0),
    Ceil: (0.0, 1.0),
    Round: (-0.5, 0.5),
}


def value(layer: Step, z: Tensor) -> Tensor:
    """The step itself, exact in z's dtype."""
    return layer.stepped(z)


def _forward(step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
    """The values at the ends of the box; the ball is the one around what numbers may become."""
    (state,) = inputs
    layer = step.layer(Step)
    centre = value(layer, state.centre)
    lower = None if state.lower is None else value(layer, state.lower)
    upper = None if state.upper is None else value(layer, state.upper)
    low, high = (value(layer, end) for end in places_of(state))
    at_centre = centre.to(torch.float64)
    corner = raised(torch.maximum(high - at_centre, at_centre - low), 1)
    radius = raised(euclidean_norm(corner)).nan_to_num(torch.inf, torch.inf)
    radius = torch.where(torch.isfinite(state.radius), radius, state.radius)
    return box_to_ball(Enclosure(centre, radius, lower, upper, state.valid))


def _lines(
    layer: Step, lower: Tensor, upper: Tensor, rule: str, rounding: Rounding
) -> LinearRelaxation:
    """Sound lines for every box, slopes >= 0; where f is one number there, that number exactly.

    With one jump at p, from a to b: a line is above f where it is at l and at p (there above b),
    below f where it is at p (below a) and at u. It goes through both of these on the side of p that
    is the longer one, elsewhere it is flat; ``cap`` takes the chord's slope for both. With more
    jumps both have the slope 1. Any slope would do: intercepts follow from the rounded one.
    """
    a, b = value(layer, lower), value(layer, upper)
    place = torch.minimum(torch.maximum(JUMPS[type(layer)](a, b), lower), upper)
    before, behind, rise = place - lower, upper - place, b - a
    largest = LARGEST_OF_SIGN if isinstance(layer, Sign) else LARGEST
    fits = (a < b) & (torch.maximum(lower.abs(), upper.abs()) < largest)
    single = fits if isinstance(layer, Sign) else fits & (rise == 1.0)
    zero = torch.zeros_like(lower)
    if rule == "cap":
        above = below = _slope(rise, upper - lower)
    else:
        above = torch.where(before > behind, _slope(rise, before), zero)
        below = torch.where(behind > before, _slope(rise, behind), zero)
    above, below = (torch.where(single, slope, zero) for slope in (above, below))
    # A slope of 0 leaves a and b as they are; infinite ends have no slope.
    low, high = torch.where(single, lower, zero), torch.where(single, upper, zero)
    place = torch.where(single, place, zero)
    highest = torch.where(single, torch.maximum(a - above * low, b - above * place), b)
    lowest = torch.where(single, torch.minimum(a - below * place, b - below * high), a)
    size = a.abs() + b.abs() + (above + below) * (low.abs() + high.abs())
    lost = torch.where(single, slack(size, 6 * rounding.own, rounding), zero)
    highest, lowest = highest + lost, lowest - lost
    if not isinstance(layer, Sign):
        least, most = OFFSETS[type(layer)]
        many = fits & (rise > 1.0)
        one = torch.ones_like(zero)
        above, below = (torch.where(many, one, slope) for slope in (above, below))
        highest = torch.where(many, most * one, highest)
        lowest = torch.where(many, least * one, lowest)
    return LinearRelaxation(below, lowest, above, highest, torch.zeros_like(fits), 0.0)


def _slope(rise: Tensor, run: Tensor) -> Tensor:
    """rise / run in [0, ``STEEPEST``], 0 where it is next to nothing or no number."""
    slope = rise / torch.where(run > 0, run, torch.ones_like(run))
    slope = torch.where(run > 0, slope, torch.zeros_like(slope)).nan_to_num(0.0, 0.0, 0.0)
    return torch.where(slope < MIN_SLOPE, torch.zeros_like(slope), slope.clamp_max(STEEPEST))


def _secants(layer: Step, lower: Tensor, upper: Tensor, rounding: Rounding) -> Secants:
    """Nothing is carried; across a jump, as much as it rises is added."""
    zero = torch.zeros_like(lower)
    return Secants(zero, zero, raised(value(layer, upper) - value(layer, lower), 1))


def _open(layer: Step, boxes: list[Box]) -> Tensor:
    ((lower, upper),) = boxes
    return value(layer, lower) < value(layer, upper)


def _rules(layer: type[Layer]) -> LayerRules:
    return LayerRules(
        value=value,
        forward=_forward,
        relax=_lines,
        secants=_secants,
        open=_open,
        kink_at_zero=layer is Sign,
        jumps=True,
    )


RULES: dict[type[Layer], LayerRules] = {layer: _rules(layer) for layer in JUMPS}
