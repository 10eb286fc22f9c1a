"""Curves in pieces that bend one way: enclosures, anchored slopes, lines above and below.

A ``Curve`` says where an elementwise function is convex, concave or straight, and how far the
deployed one may be from it. The rest follows: on a piece a concave function less a line has its
largest value where its slope is the line's, a convex one at an end of the piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.base import Layer
from workers.verification.enclosure import Enclosure, box_to_ball
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.rules import MIN_SLOPE, Ball, Box, LinearRelaxation, Secants
from workers.verification.numerics import (
    MANY,
    euclidean_norm,
    raised,
    rough_norm,
    rounded_down,
    rounded_up,
    up,
)
from workers.verification.rounding import Rounding

__all__ = [
    "CONCAVE",
    "CONVEX",
    "KERNEL_ERROR",
    "LARGEST",
    "OWN_ERROR",
    "STRAIGHT",
    "Curve",
    "CurveRules",
    "Piece",
    "places_of",
]

#: How a piece bends.
CONVEX, STRAIGHT, CONCAVE = 1, 0, -1
#: Error of the float64 evaluation of a curve, relative to 1 + |f|, with room for what follows from
#: it: products with a slope, a piece that begins within 1e-12 of where the curve turns its bend
#: (there it is off a convex or concave one by less than 1e-24), a straight piece that is straight
#: to within 1e-15.
OWN_ERROR = 1e-13
#: A deployed value f(z) is within this of the real one, and within this times |z| more. A STATED
#: bound of the runtimes' kernels, not a proved one: ONNX Runtime 1.31 and torch 2.13 on x86 are
#: off by at most two thirds of it times max(1, |z|), as single operators and as the nodes that
#: exporters write (benchmarks/verification/kernels.py; docs/results.md).
KERNEL_ERROR = 6e-7
#: Inputs up to which nothing overflows float32 on the way to the result: times a scale, and in the
#: files that write a gate with numbers beside it (at most 1e3 each, three before the product).
LARGEST = 2.0**80
#: Slopes of lines, at most: more is no float32 number.
STEEPEST = 1e30
#: Halvings that find the place of a slope on a piece: what is lost is of second order.
HALVINGS = 24
#: Places at which a slope is looked for, on either side of the middle.
PLACES = 4


@dataclass(frozen=True)
class Piece:
    """From ``start`` to the next piece's; ``steep``: the largest |slope| on either side of it."""

    start: float
    bend: int
    steep: float = 0.0


@dataclass(frozen=True)
class Curve:
    """f, elementwise; f(0) = 0 where it has a Lipschitz constant.

    value, slope: f and f' of float64 numbers, up to ``OWN_ERROR``; where two pieces meet with a
    kink, f' is that of the piece which is not straight. pieces: in order, the first from -inf on.
    turn: where f is least, if it falls first and then rises; None: it never falls, or ``falls``.
    domain: numbers outside which the deployed f overflows or has no value.
    steepest: a Lipschitz constant of at least 1, or inf. place: the z with f'(z) = slope on a
    piece, where there is a formula: (slope, number of the piece). absolute, per_input, per_value:
    a deployed f(z) is within absolute + per_input |z| + per_value |f(z)| of the real one. largest:
    inputs up to which nothing overflows float32 on the way.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    pieces: tuple[Piece, ...]
    steepest: float
    turn: float | None = None
    place: Callable[[Tensor, int], Tensor] | None = None
    absolute: float = 0.0
    per_input: float = 0.0
    per_value: float = 0.0
    largest: float = LARGEST
    domain: tuple[float, float] = (-math.inf, math.inf)
    falls: bool = False

    def inside(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes cut with the domain, and which of them reach out of it."""
        start, end = self.domain
        return low.clamp(start, end), high.clamp(start, end), (low < start) | (high > end)

    def ends(self, number: int) -> tuple[float, float]:
        """Where a piece begins and ends."""
        starts = [piece.start for piece in self.pieces[number : number + 2]]
        return starts[0], starts[1] if len(starts) == 2 else math.inf

    def image(self, low: Tensor, high: Tensor) -> Box:
        """The least and the largest value over boxes, float64; infinite out of the domain."""
        low, high, outside = self.inside(low, high)
        first, last = self.value(low), self.value(high)
        if self.falls:
            first, last = last, first
        if self.turn is not None:
            least = self.value(torch.clamp(torch.full_like(low, self.turn), low, high))
            first, last = torch.minimum(first, last), torch.maximum(first, last)
            first = torch.minimum(first, least)
        return first.masked_fill(outside, -math.inf), last.masked_fill(outside, math.inf)

    def error(self, reach: Tensor, size: Tensor, rounding: Rounding) -> Tensor | float:
        """How far deployed values may be from ours (rounded to the own arithmetic), for inputs up
        to ``reach`` and values up to ``size`` in magnitude."""
        if not rounding.is_sound:
            return 0.0
        error = self.absolute + self.per_input * reach + (self.per_value + 2 * rounding.own) * size
        return raised(error + OWN_ERROR * (1.0 + size))

    def largest_less(self, slope: Tensor, low: Tensor, high: Tensor, side: int) -> Tensor:
        """An upper bound on side (f(z) - slope z) over the box [n], all float64 and flat.

        On a piece where side f is concave, its value at p is at most that at l plus the slope there
        times r - l, if the place where the slope is 0 is between l and r.
        """

        def less(z: Tensor, s: Tensor) -> Tensor:
            return side * (self.value(z) - s * z)

        best = torch.maximum(less(low, slope), less(high, slope))
        for number, piece in enumerate(self.pieces):
            start, end = self.ends(number)
            if number and piece.bend * self.pieces[number - 1].bend != -1:
                # Between bends of opposite kinds nothing is largest that is not so inside one.
                bend = torch.clamp(torch.full_like(low, start), low, high)
                best = torch.maximum(best, less(bend, slope))
            inside = (high > start) & (low < end)
            if piece.bend != -side or not bool(inside.any()):
                continue
            picked = inside.nonzero().flatten()
            s = slope[picked]
            left, right = low[picked].clamp_min(start), high[picked].clamp_max(end)
            if self.place is not None:
                left = torch.clamp(self.place(s, number), left, right)
                best[picked] = torch.maximum(best[picked], less(left, s))
                continue
            for _ in range(HALVINGS):
                p = 0.5 * (left + right)
                rises = side * (self.slope(p) - s) > 0
                left, right = torch.where(rises, p, left), torch.where(rises, right, p)
            more = (side * (self.slope(left) - s)).clamp_min(0.0) * (right - left)
            best[picked] = torch.maximum(best[picked], less(left, s) + more)
        return best

    def supporting(self, low: Tensor, high: Tensor, side: int) -> Tensor:
        """The slope of a line that is about as near to f as can be at the box's middle, above it
        (``side`` 1) or below: of the chord that is outermost there, or the tangent."""
        middle = 0.5 * low + 0.5 * high
        half = high - middle
        best, slope = side * self.value(middle), self.slope(middle)
        steps = [half * (step / PLACES) for step in range(1, PLACES + 1)]
        below = [(middle - step, self.value(middle - step)) for step in steps]
        above = [(middle + step, self.value(middle + step)) for step in steps]
        for first, at_first in below:
            for second, at_second in above:
                rise = (at_second - at_first) / (second - first)
                there = side * (at_first + rise * (middle - first))
                # Written so that a quotient that is none changes nothing.
                better = there > best + OWN_ERROR
                best, slope = torch.where(better, there, best), torch.where(better, rise, slope)
        return slope

    def slope_range(self, low: Tensor, high: Tensor) -> Box:
        """The least and the largest f' over boxes, float64: f' is monotone on every piece, and
        where it jumps the straight side has an end of the box in it. Infinite out of the domain."""
        low, high, outside = self.inside(low, high)
        places = [torch.clamp(torch.full_like(low, p.start), low, high) for p in self.pieces[1:]]
        return self._around([self.slope(place) for place in (low, high, *places)], outside)

    def _around(self, slopes: list[Tensor], outside: Tensor) -> Box:
        """The least and the largest of these slopes, our own error around them."""
        stacked = torch.stack(slopes)
        lost = OWN_ERROR * (1.0 + stacked.abs().amax(0))
        least, most = stacked.amin(0) - lost, stacked.amax(0) + lost
        return least.masked_fill(outside, -math.inf), most.masked_fill(outside, math.inf)

    def steepness(self, low: Tensor, high: Tensor) -> Tensor:
        """The largest |f'| over boxes, float64: f' is monotone on every piece. Infinite out of the
        domain."""
        low, high, outside = self.inside(low, high)
        best = torch.maximum(self.slope(low).abs(), self.slope(high).abs())
        for piece in self.pieces[1:]:
            inside = (low <= piece.start) & (high >= piece.start)
            best = torch.maximum(best, inside * piece.steep)
        return raised(best + OWN_ERROR).masked_fill(outside, math.inf)


@dataclass(frozen=True)
class CurveRules:
    """The rules of layers of which ``curve`` gives the curve; largest: of all of these curves."""

    curve: Callable[[Layer], Curve]
    largest: float = LARGEST

    def value(self, layer: Layer, z: Tensor) -> Tensor:
        """The layer's value, evaluated in float64 and rounded to z's dtype."""
        return self.curve(layer).value(z.to(torch.float64)).to(z.dtype)

    def open(self, layer: Layer, boxes: list[Box]) -> Tensor:
        """Where the curve bends enough over the box for its bounds to matter."""
        curve, ((lower, upper),) = self.curve(layer), boxes
        low, high = lower.to(torch.float64), upper.to(torch.float64)
        slopes = torch.stack([curve.slope(z) for z in (low, 0.5 * (low + high), high)])
        return (slopes.amax(0) - slopes.amin(0)) * (high - low) > 1e-4

    def image(self, layer: Layer, boxes: list[Box]) -> Box:
        """The image of a box in real arithmetic, as the layer computes it."""
        ((lower, upper),) = boxes
        first, last, turn = layer(lower), layer(upper), self.curve(layer).turn
        if turn is None:
            return (last, first) if self.curve(layer).falls else (first, last)
        least = layer(torch.clamp(torch.full_like(lower, turn), lower, upper))
        return torch.minimum(torch.minimum(first, last), least), torch.maximum(first, last)

    def lines(
        self, layer: Layer, lower: Tensor, upper: Tensor, rule: str, rounding: Rounding
    ) -> LinearRelaxation:
        """Sound lines for every box.

        Slopes are chosen first (any would do; ``cap``: the chord's for both) and rounded to the
        dtype; intercepts are the extremes of f(z) - slope z over the box, and infinite where it
        reaches out of the domain.
        """
        curve, dtype, shape = self.curve(layer), lower.dtype, lower.shape
        low, high = lower.to(torch.float64).flatten(), upper.to(torch.float64).flatten()
        low, high, outside = curve.inside(low, high)
        at_low, at_high = curve.value(low), curve.value(high)
        width = torch.where(high > low, high - low, 1.0)
        chord = torch.where(high > low, (at_high - at_low) / width, curve.slope(low))
        reach = torch.maximum(low.abs(), high.abs())
        size = torch.maximum(at_low.abs(), at_high.abs()) + 1.0
        error = curve.error(reach, size, rounding)
        found = []
        for side in (-1, 1):
            slope = chord if rule == "cap" else curve.supporting(low, high, side)
            rounded = slope.nan_to_num(0.0, 0.0, 0.0).clamp(-STEEPEST, STEEPEST).to(dtype)
            wide = rounded.to(torch.float64)
            most = curve.largest_less(wide, low, high, side)
            lost = error + OWN_ERROR * (size + wide.abs() * reach) * rounding.is_sound
            most = most.masked_fill(outside, math.inf)
            found.append((rounded.reshape(shape), rounded_up(most + lost, dtype).reshape(shape)))
        (below, lowest), (above, highest) = found
        free = torch.zeros_like(lower, dtype=torch.bool)
        return LinearRelaxation(below, -lowest, above, highest, free, 0.0)

    def slopes(self, layer: Layer, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Anchored slopes: the steepest f' between the box and the centre."""
        curve, a = self.curve(layer), centre.to(torch.float64)
        low, high = (end.to(torch.float64) for end in (lower, upper))
        slope = curve.steepness(torch.minimum(low, a), torch.maximum(high, a))
        slope = slope.nan_to_num(curve.steepest, curve.steepest).clamp_max(curve.steepest)
        return rounded_up(slope, centre.dtype).clamp_min(MIN_SLOPE)

    def steepest(self, layer: Layer) -> float:
        """The curve's Lipschitz constant."""
        return self.curve(layer).steepest

    def growth(
        self, step: GraphStep, centre_norm: Tensor, rounding: Rounding
    ) -> tuple[float, Tensor]:
        """Steepest times the radius; the deployed value at z within the radius and ours at the
        centre are off by absolute + relative |z| each (|f(z)| <= steepest |z|)."""
        curve = self.curve(step.layer(Layer))
        if not rounding.is_sound:
            return curve.steepest, torch.zeros_like(centre_norm)
        size = torch.Size(step.shape).numel() ** 0.5
        share = curve.per_value + 2 * rounding.own + OWN_ERROR
        relative = raised(curve.per_input + share * curve.steepest)
        fixed = raised(2 * (curve.absolute + OWN_ERROR) * size)
        return raised(curve.steepest + 2 * relative), 2 * relative * centre_norm + fixed

    @property
    def ball(self) -> Ball:
        """How a ball grows."""
        return Ball(self.growth, largest_input=self.largest, steepest=self.steepest)

    def secants(self, layer: Layer, lower: Tensor, upper: Tensor, rounding: Rounding) -> Secants:
        """Values of f' over the box (mean value theorem), and how far a deployed value may be off;
        infinite where the deployed f may overflow on the way or leave its domain."""
        curve = self.curve(layer)
        low, high = lower.to(torch.float64), upper.to(torch.float64)
        least, most = curve.slope_range(low, high)
        reach = torch.maximum(low.abs(), high.abs())
        image = torch.stack(curve.image(low, high)).abs().amax(0)
        error = torch.zeros_like(reach) + curve.error(reach, image, rounding)
        beyond = ~((reach < curve.largest) & torch.isfinite(error))
        return Secants(
            least.clamp_min(-curve.steepest),
            most.clamp_max(curve.steepest),
            error.masked_fill(beyond, math.inf),
        )

    def forward(self, step: GraphStep, inputs: list[Enclosure], rounding: Rounding) -> Enclosure:
        """The image of the box in real arithmetic, the deployed errors and ours on top.

        A curve without a Lipschitz constant moves the ball as steeply as it gets where numbers may
        be. Where they may leave the domain nothing is concluded.
        """
        (state,) = inputs
        layer, dtype = step.layer(Layer), state.centre.dtype
        curve, norms = self.curve(layer), rough_norm(state.centre)
        size = norms + state.radius
        lower = upper = None
        if state.lower is not None and state.upper is not None:
            low, high = state.lower.to(torch.float64), state.upper.to(torch.float64)
            reach = torch.maximum(low.abs(), high.abs())
            size = torch.fmin(size, reach.flatten(1).amax(1))
            lower, upper = curve.image(low, high)
            error = curve.error(reach, torch.maximum(lower.abs(), upper.abs()), rounding)
            lower, upper = rounded_down(lower - error, dtype), rounded_up(upper + error, dtype)
        valid = state.valid
        if math.isinf(curve.steepest):
            low, high = places_of(state)
            radius = self._moved(step, curve, state, (low, high), rounding)
            outside = curve.inside(low, high)[2].flatten(1).any(1)
            valid, radius = valid & ~outside, radius.masked_fill(outside, math.inf)
        else:
            radius = self.ball.grown(step, state.radius, norms, rounding)
        if rounding.is_sound:
            valid = valid & (size < curve.largest)
        result = Enclosure(self.value(layer, state.centre), radius, lower, upper, valid)
        return box_to_ball(result)

    def _moved(
        self, step: GraphStep, curve: Curve, state: Enclosure, places: Box, rounding: Rounding
    ) -> Tensor:
        """The radius behind a curve that is steep somewhere, for inputs in ``places`` (which hold
        the centre, and with it all that is between the two): the steepest slope there times the
        radius, and how far deployed values may be from ours."""
        low, high = places
        steep = curve.steepness(low, high).flatten(1).amax(1)
        grown = steep * state.radius
        if rounding.is_sound:
            reach = torch.maximum(low.abs(), high.abs())
            lowest, highest = curve.image(low, high)
            size = torch.maximum(lowest.abs(), highest.abs())
            off = torch.zeros_like(size) + curve.error(reach, size, rounding)
            grown = grown + euclidean_norm(off)
        # No slope times no radius is no number: nothing is known then. What was none stays none.
        grown = raised(grown, MANY).nan_to_num(math.inf, math.inf)
        return torch.where(torch.isfinite(state.radius), grown, state.radius)


def places_of(state: Enclosure) -> Box:
    """Where each input may be, its centre included, float64: within the radius, and in the box."""
    centre = state.centre.to(torch.float64)
    radius = state.radius.reshape(-1, *([1] * (centre.dim() - 1)))
    # A sum is off by a rounding of what is added.
    half = radius + (up() - 1.0) * (centre.abs() + radius)
    low, high = centre - half, centre + half
    if state.lower is not None and state.upper is not None:
        low = torch.fmax(low, state.lower.to(torch.float64))
        high = torch.fmin(high, state.upper.to(torch.float64))
    return torch.minimum(low, centre), torch.maximum(high, centre)
