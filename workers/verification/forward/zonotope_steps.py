"""One step of a network applied to zonotopes: affine maps, moves and sums, elementwise layers.

Layers that are none of these (a maximum over a window, sorted pairs) begin anew from their box.

Affine maps and moves are exact but for rounding. An elementwise layer phi is replaced by a line:
for any slope s, phi(z) - s z lies in an interval over the box of z, so that

    phi(z) = s z + middle + half e,    e in [-1, 1] a new term of this neuron.

The interval comes from the layer's own lines above and below (``LayerRules.relax``), the deployed
rounding of the layer inside. With the chord's slope it is the parallelogram of least area (DeepZ,
Singh et al. 2018); where a (leaky) ReLU may be on either side of 0, any slope in its range is
valid, and COLT (Balunovic and Vechev 2020) learns them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.base import Layer
from workers.verification.block_sizes import ROW_BYTES
from workers.verification.clock import UNLIMITED, Clock, rows_per_piece
from workers.verification.forward.zonotope import Zonotope
from workers.verification.graph.affine import Affine
from workers.verification.graph.affine_maps import Convolution, Dense
from workers.verification.graph.graph_step import GraphStep, UnsupportedLayer
from workers.verification.layers.registry import apply_layer, rules_of
from workers.verification.layers.rules import Box, LinearRelaxation
from workers.verification.norms.per_sample import multiplications
from workers.verification.numerics import floor, raised, rounding_error, slack, up
from workers.verification.rounding import Rounding

__all__ = ["NewTerms", "affine", "boxed", "elementwise", "in_pieces", "linear"]

#: Of an interval, in roundings of its ends: a narrower one is worth no term of its own.
NARROW = 16.0


@dataclass(frozen=True)
class NewTerms:
    """Which neurons of a step have a term of their own: place [batch, terms] in the flattened
    value, used [batch, terms] bool (samples have different numbers of them)."""

    place: Tensor
    used: Tensor

    def values(self, full: Tensor) -> Tensor:
        """The numbers of these neurons, 0 where unused: [batch, *shape] -> [batch, terms]."""
        return torch.where(self.used, full.flatten(1).gather(1, self.place), 0.0)

    def rest(self, full: Tensor) -> Tensor:
        """What has no term: ``full`` [batch, *shape] with 0 at these neurons."""
        kept = torch.where(self.used, 0.0, full.flatten(1).gather(1, self.place))
        return full.flatten(1).scatter(1, self.place, kept).reshape(full.shape)

    def spread_out(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """[batch, terms] -> terms [batch, terms, *shape], one number in each."""
        size = torch.Size(shape).numel()
        full = values.new_zeros(*values.shape, size)
        return full.scatter(2, self.place[..., None], values[..., None]).unflatten(2, tuple(shape))

    @classmethod
    def largest(cls, sizes: Tensor, room: Tensor) -> NewTerms:
        """Of each sample its ``room`` [batch] largest sizes [batch, *shape], of those above 0."""
        flat = sizes.flatten(1)
        counts = torch.minimum((flat > 0).sum(1), room)
        top, place = flat.topk(int(counts.amax()), dim=1)
        rank = torch.arange(top.shape[1], device=top.device)
        return cls(place, rank < counts[:, None])


def in_pieces(
    apply: Callable[..., Tensor],
    rows: Sequence[Tensor],
    shape: Sequence[int],
    clock: Clock,
    cost: int = 1,
) -> Tensor:
    """``apply`` on terms [batch, terms, *shape] of each input, some at a time: what a cache holds.

    shape: of the result; cost: multiplications of one row. Looks at the clock between pieces, there
    and on the gradient's way back: raises OutOfTime.
    """
    batch, count = rows[0].shape[:2]
    flat = [part.flatten(0, 1) for part in rows]
    largest = max(torch.Size(shape).numel(), *(part[:1].numel() for part in flat), 1)
    device = flat[0].device
    width = max(1, ROW_BYTES[device.type] // (largest * flat[0].element_size()))
    width = min(width, rows_per_piece(cost, device))
    found = []
    for start in range(0, batch * count, width):
        clock.check()
        piece = apply(*(part[start : start + width] for part in flat))
        found.append(checked_on_the_way_back(piece, clock))
    whole = torch.cat(found) if found else flat[0].new_zeros(0, *shape)
    return whole.reshape(batch, count, *shape)


def checked_on_the_way_back(piece: Tensor, clock: Clock) -> Tensor:
    """The piece, whose gradient is looked for only while there is time."""
    if piece.requires_grad:
        piece.register_hook(lambda gradient: clock.check())
    return piece


def affine(
    step: GraphStep, state: Zonotope, rounding: Rounding, clock: Clock = UNLIMITED
) -> Zonotope:
    """An affine map.

    The deployed value lies within g (|W| |z'| + |b|) of W z' + b; centre and terms as computed here
    are off by g_own (|W| (|c| + sum |terms|) + |b|) together, for any |e_m| <= 1. Both magnitudes
    are at most the reach.
    """
    op = step.affine
    deployed, own = rounding.deployed_gamma(op.terms), rounding.own_gamma(op.own_terms)
    both = deployed + own + 32 * rounding.own
    centre = op.apply(state.centre)
    dtype = centre.dtype
    before = state.slack + state.reach() * both if rounding.is_sound else state.slack
    # The slack goes through |W|, which is off by at most own: raised in advance.
    before = before * (up(31, dtype) * (1.0 + 2.0 * own)) + floor(dtype, rounding)
    lost = rounding.underflow * op.floor
    constant = op.cast(
        f"box constant {both}",
        centre,
        lambda: rounding_error(op.bias_magnitude, both) + lost,
    )
    cost = multiplications(op) if isinstance(op, Dense | Convolution) else 1
    terms = {
        group: in_pieces(op.linear, [rows], step.shape, clock, cost)
        for group, rows in state.terms.items()
    }
    return Zonotope(centre, terms, op.absolute(before) + constant, state.ball)


def linear(
    step: GraphStep, states: Sequence[Zonotope], rounding: Rounding, clock: Clock = UNLIMITED
) -> Zonotope:
    """A layer that moves numbers or adds values up: the terms that they share are added too.

    Raises UnsupportedLayer where no rule covers it.
    """
    layer, part = _layer(step), rules_of(_layer(step)).linear
    if part is None:
        raise UnsupportedLayer(f"no rule carries a zonotope through the step {step.name}")
    change = part.change
    result = apply_layer(layer, *(state.centre for state in states))
    groups = dict.fromkeys(group for state in states for group in state.terms)
    terms = {
        group: in_pieces(
            lambda *rows: change(layer, *rows),
            [_rows(state, group, states) for state in states],
            step.shape,
            clock,
        )
        for group in groups
    }
    lost = change(layer, *(state.slack for state in states))
    if part.rounds:
        size = change(layer, *(state.reach() for state in states))
        size = raised(size, 3, size.dtype)
        lost = raised(lost, 3, lost.dtype) + slack(size, rounding.single_operation, rounding)
        lost = lost + 4 * rounding.underflow
    return Zonotope(result, terms, lost, states[0].ball)


def _layer(step: GraphStep) -> Layer:
    if isinstance(step.op, Affine):
        raise UnsupportedLayer(f"the step {step.name} is an affine map")
    return step.op


def _rows(state: Zonotope, group: int, states: Sequence[Zonotope]) -> Tensor:
    """The terms of a group in one of several values: 0 where it does not have them."""
    if group in state.terms:
        return state.terms[group]
    count = next(other.terms[group].shape[1] for other in states if group in other.terms)
    batch, *shape = state.centre.shape
    return state.centre.new_zeros(batch, count, *shape)


def elementwise(
    step: GraphStep,
    index: int,
    state: Zonotope,
    box: Box,
    rounding: Rounding,
    *,
    slopes: Tensor | None = None,
    chosen: NewTerms | None = None,
    room: Tensor | None = None,
) -> tuple[Zonotope, NewTerms]:
    """An elementwise layer over the box of its input; its new terms are the group index + 1.

    slopes [batch, *shape]: of the neurons whose slope is free (None: the chord's); chosen: neurons
    that get terms of their own (None: the ``room`` [batch] largest); what has none goes into the
    slack.
    Raises UnsupportedLayer where no rule covers the layer.
    """
    relax = rules_of(step.op).relax
    if relax is None:
        raise UnsupportedLayer(f"no rule has lines around the step {step.name}")
    lines = relax(step.op, *box, "cap", rounding)
    slope, middle, half = interval(lines, box, slopes, rounding)
    centre = slope * state.centre + middle
    lost = raised(slope.abs() * state.slack, 4, centre.dtype)
    if rounding.is_sound:
        size = slope.abs() * (state.centre.abs() + state.spread()) + middle.abs()
        lost = lost + slack(size, 8 * rounding.own, rounding)
    if chosen is None:
        size = torch.maximum(box[0].abs(), box[1].abs())
        worth = half > NARROW * rounding.own * size
        chosen = NewTerms.largest(torch.where(worth, half, 0.0), _some(half, room))
    with_slope = slope[:, None]
    terms = {group: rows * with_slope for group, rows in state.terms.items()}
    own = chosen.values(half)
    if own.shape[1]:
        terms[index + 1] = chosen.spread_out(own, step.shape)
    lost = raised(lost + chosen.rest(half), 2, lost.dtype)
    return Zonotope(centre, terms, lost, state.ball), chosen


def boxed(
    step: GraphStep,
    index: int,
    box: Box,
    rounding: Rounding,
    *,
    ball: bool,
    chosen: NewTerms | None = None,
    room: Tensor | None = None,
) -> tuple[Zonotope, NewTerms]:
    """Any other layer: its result's box, with a term for each number as far as there is room.

    What it has in common with other values is forgotten. Arguments as of ``elementwise``.
    """
    lower, upper = box
    centre = 0.5 * (lower + upper)
    half = raised(torch.maximum(upper - centre, centre - lower), 2, centre.dtype)
    half = half + slack(centre.abs(), 2 * rounding.own, rounding)
    if chosen is None:
        chosen = NewTerms.largest(half, _some(half, room))
    own = chosen.values(half)
    terms = {index + 1: chosen.spread_out(own, step.shape)} if own.shape[1] else {}
    return Zonotope(centre, terms, chosen.rest(half), ball), chosen


def _some(like: Tensor, room: Tensor | None) -> Tensor:
    """``room``, or none at all: [batch]."""
    return torch.zeros_like(like.flatten(1)[:, 0]).long() if room is None else room


def interval(
    lines: LinearRelaxation, box: Box, slopes: Tensor | None, rounding: Rounding
) -> tuple[Tensor, Tensor, Tensor]:
    """(slope, middle, half) [batch, *shape]: layer(z) - slope z is in middle -+ half over the box.

    From any slope and the lines: what is above is a s' z + b' - s z, largest at an end of the box.
    The slope is taken as it is rounded; the rounding of the rest is inside ``half``.
    """
    lower, upper = box
    if slopes is None:
        free = lines.lower_slope
    else:
        free = slopes.clamp(lines.min_slope, 1.0)
    slope = torch.where(lines.free, free, 0.5 * (lines.lower_slope + lines.upper_slope))
    below = torch.where(lines.free, slope, lines.lower_slope) - slope
    above = lines.upper_slope - slope
    low = 0.0 if lines.lower_intercept is None else lines.lower_intercept
    top = torch.maximum(above * lower, above * upper) + lines.upper_intercept
    bottom = torch.minimum(below * lower, below * upper) + low
    reach = torch.maximum(lower.abs(), upper.abs())
    size = (above.abs() + below.abs()) * reach + lines.upper_intercept.abs()
    if lines.lower_intercept is not None:
        size = size + lines.lower_intercept.abs()
    lost = slack(size, 16 * rounding.own, rounding)
    middle = 0.5 * (top + bottom)
    half = raised(0.5 * (top - bottom), 4, middle.dtype) + lost
    return slope, middle, half
