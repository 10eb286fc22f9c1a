"""What bounds need to know of a layer: ``LayerRules``, the row that a layer has in the registry.

Every rule is optional. A bound covers a network where each layer has the rules that the bound uses:
nothing is assumed of a layer without them. A new layer is one file of rules and one row.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from models.layers.base import Layer
from workers.verification.backward.linear_form import LinearForm
from workers.verification.enclosure import Enclosure
from workers.verification.graph.affine import Affine
from workers.verification.graph.graph_step import GraphStep
from workers.verification.numerics import raised
from workers.verification.rounding import Rounding

__all__ = [
    "MIN_SLOPE",
    "ROOT_OF_SQUARES",
    "SUM",
    "BackwardState",
    "Ball",
    "Box",
    "Carried",
    "Differences",
    "Join",
    "LayerRules",
    "LinearPart",
    "LinearRelaxation",
    "Secants",
    "TwoLines",
    "nothing",
    "plain_value",
]

#: Slopes that are not zero are at least this, so that no product of them underflows unseen.
MIN_SLOPE = 1e-30

#: Lower and upper ends of a value, [batch, *shape] each.
Box = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Join:
    """How the moves of a layer's inputs add up: ``radius`` of balls [batch], ``slope`` of numbers.

    slope is for radii slope * epsilon + offset: joined offsets may be added (Minkowski).
    """

    radius: Callable[[Sequence[Tensor]], Tensor]
    slope: Callable[[Sequence[float]], float]


def _hypot(radii: Sequence[Tensor]) -> Tensor:
    return raised(functools.reduce(torch.hypot, radii))


#: Holds for every layer that is 1-Lipschitz in each of its inputs.
SUM = Join(lambda radii: torch.stack(list(radii)).sum(0), sum)
#: The output moves by at most the root of the sum of the squares of the inputs' moves:
#: concatenation keeps them side by side, and per element |max(a, b) - max(a', b')| <=
#: max(|a - a'|, |b - b'|).
ROOT_OF_SQUARES = Join(_hypot, lambda slopes: raised(math.hypot(*slopes)))

#: (step, norms of the inputs' centres [batch], rounding) -> factor and offset of the radius.
Growth = Callable[[GraphStep, Tensor, Rounding], tuple[float, Tensor | float]]


def _one(layer: Layer) -> float:
    return 1.0


@dataclass(frozen=True)
class Ball:
    """How a layer moves a ball: the radius after it is at most factor * (joined radii) + offset.

    growth(step, centre_norm, rounding) gives (factor, offset), with centre_norm [batch] the sum of
    the norms of the input centres. Where the layer rounds, |layer(z)| <= max(1, factor) |z| holds
    besides (``lipschitz`` keeps it from overflowing).
    largest_input: norm of an input from which the layer may overflow float32 (of those that round).
    reads_norm: whether growth depends on centre_norm; False saves computing it, and says that the
    layer cannot overflow. join: how several inputs move the output. steepest(layer): the factor
    without any rounding, where it may be above 1.
    """

    growth: Growth
    reads_norm: bool = True
    join: Join = SUM
    largest_input: float = math.inf
    steepest: Callable[[Any], float] = _one

    def grown(
        self, step: GraphStep, radius: Tensor, centre_norm: Tensor, rounding: Rounding
    ) -> Tensor:
        """The radius after a step, [batch] float64, from the joined radius before it."""
        factor, offset = self.growth(step, centre_norm, rounding)
        result = raised(factor * radius + offset)
        # Without a ball the radius stays infinite (0 * inf is no number).
        return torch.where(torch.isinf(radius), radius, result)


@dataclass
class LinearRelaxation:
    """Elementwise lines over a box, [batch, *shape] each:

    lower_slope z + lower_intercept <= layer(z) <= upper_slope z + upper_intercept.
    ``free`` marks where the lower slope may be any value in [min_slope, 1] (unstable neurons).
    They hold for the DEPLOYED float32 layer: its own rounding is part of the intercepts.
    """

    lower_slope: Tensor
    lower_intercept: Tensor | None
    upper_slope: Tensor
    upper_intercept: Tensor
    free: Tensor
    min_slope: float


@dataclass(frozen=True)
class TwoLines:
    """An elementwise layer that is a line through 0 on either side of 0: ``below`` z for z <= 0,
    ``above`` z for z >= 0, neither slope larger than 1 in magnitude.

    Slopes are numbers, or broadcast to [batch, *shape]. error [batch, *shape]: how far the deployed
    value, and the one computed here, may be from it together; None: both are exact.
    """

    below: float | Tensor
    above: float | Tensor
    error: Tensor | None = None


@dataclass(frozen=True)
class Secants:
    """How an elementwise layer carries a difference between numbers of a box, [batch, *shape] each:

    for a and b in it, deployed(b) - layer(a) = s (b - a) + e with low <= s <= high, |e| <= error
    (None: 0).
    """

    low: Tensor
    high: Tensor
    error: Tensor | None = None


class Differences(Protocol):
    """How a layer that sorts pairs carries a difference between two inputs of a box
    (``pairs.differences``)."""

    def shares(self, layer: Any, boxes: Sequence[Box]) -> Tensor:
        """How much of the first of a pair is in the maximum."""

    def open(self, shares: Tensor, inputs: int) -> Tensor:
        """Where tighter boxes might tell more, in the shape of an input."""

    def carried(self, shares: Tensor, far: Sequence[Tensor], unit: float) -> tuple[Tensor, Tensor]:
        """(what is paid for each coefficient of a row, how far the result is off)."""

    def back(self, layer: Any, shares: Tensor, rows: LinearForm) -> list[LinearForm]:
        """Rows on the inputs."""


@dataclass(frozen=True)
class LinearPart:
    """A layer that is linear up to a constant, in several inputs perhaps, and no affine map here.

    change(layer, *inputs): by how much the result moves where the inputs move by these; exact in
    any arithmetic where nothing is rounded. rounds: whether each result is a sum, rounded once.
    """

    change: Callable[..., Tensor]
    rounds: bool = False


class BackwardState(Protocol):
    """What a backward rule may ask of the pass that it is part of (``BackwardPass``)."""

    rounding: Rounding
    dtype: torch.dtype
    #: What rules made for a step, kept for further rows, by the step's index.
    made: dict[int, Any]

    def box(self, value: int) -> Box:
        """Elementwise bounds of a value, [batch, *shape] each."""

    def shape_of(self, value: int) -> tuple[int, ...]:
        """Shape of a value, without the batch."""

    def rounded(self, value: int, rows: LinearForm) -> Tensor:
        """What two roundings of each coefficient may change in rows . value, [rows]."""

    def share_of(self, value: int, share: float) -> Tensor:
        """This share of a value's largest magnitude, [batch, *shape]."""


#: Coefficients on each of the step's inputs, what the constant gains [rows], its magnitude [rows].
Carried = tuple[list[LinearForm], Tensor, Tensor]


def nothing(rows: LinearForm) -> Tensor:
    """The gain of a constant that does not change."""
    return torch.zeros((), dtype=torch.float64, device=rows.coefficients.device)


def plain_value(layer: Layer, *inputs: Tensor) -> Tensor:
    """The layer's own forward pass."""
    result: Tensor = layer(*inputs)
    return result


@dataclass(frozen=True)
class LayerRules:
    """All that is known of one layer class. Rules are given the layer itself, or its step.

    affine(layer, input shape): the layer as an affine map with exact parameters; it needs no other
    rule, because affine maps have all of theirs.
    value(layer, *inputs): the real function in the inputs' dtype, where the layer's own forward
    pass is not it (constants rounded, kernels).
    forward(step, inputs, rounding): an ``Enclosure`` of every deployed float32 value.
    image(layer, boxes of the inputs): the image of boxes in real arithmetic, for training; None:
    the layer never falls in any input, so that its values at the ends are the ends.
    ball: how the radius of a ball grows.
    slopes(layer, centre, lower, upper): anchored slopes s [batch, *shape] in the centre's dtype,
    rounded up. For a fixed centre a and every deployed value t in [l, u],
    |phi(t) - phi(a)| <= s |t - a| elementwise in real arithmetic (``forward.local_pass``): never
    more than ``ball.steepest``, and 0 where nothing can change. Layers that sort pairs have one
    slope for both, and
    the inequality holds for the norms of the pairs. What the layer's own float32 evaluation adds
    is said by ``ball``.
    relax(layer, lower, upper, rule, rounding): a ``LinearRelaxation`` over the box, with lower
    slopes by the rule ``crown`` or ``cap``. Elementwise layers have it in place of ``backward``.
    two_lines(layer, lower, upper, rounding): ``TwoLines`` over the box, of layers that are so.
    secants(layer, lower, upper, rounding): ``Secants`` over the box; layers with ``two_lines`` have
    them from these.
    backward(state, index, step, rows): rows . result as rows on the step's inputs, from below.
    linear: ``LinearPart`` of layers that move numbers or add them up; their ``backward`` makes the
    same coefficients of a row and, negated, of the negated row.
    differences: ``Differences`` of layers that sort pairs and round nothing.
    open(layer, boxes of the inputs): where tighter boxes would make the rules above tighter, bool
    in the shape of an input, or such a tensor for every input. None: nowhere. kink_at_zero: only
    the side of 0 matters there.
    slopes_in_unit_interval: elementwise in real arithmetic, never falling, 1-Lipschitz.
    absorbs_rounding: ``backward`` pays for the roundings of the coefficients that it is given.
    permutes: the result holds the input's numbers, each once, elsewhere.
    splits: on either side of 0 the deployed layer is exactly its input, or exactly 0, so that
    branch and bound may look at the sides apart.
    jumps: the layer is constant between jumps, and its value is one of those on either side.
    overlap(layer, input shape): largest number of windows that one input is in.
    """

    affine: Callable[[Any, tuple[int, ...]], Affine] | None = None
    value: Callable[..., Tensor] = plain_value
    forward: Callable[[GraphStep, list[Enclosure], Rounding], Enclosure] | None = None
    image: Callable[[Any, list[Box]], Box] | None = None
    ball: Ball | None = None
    slopes: Callable[[Any, Tensor, Tensor, Tensor], Tensor] | None = None
    relax: Callable[[Any, Tensor, Tensor, str, Rounding], LinearRelaxation] | None = None
    two_lines: Callable[[Any, Tensor, Tensor, Rounding], TwoLines] | None = None
    secants: Callable[[Any, Tensor, Tensor, Rounding], Secants] | None = None
    backward: Callable[[BackwardState, int, GraphStep, LinearForm], Carried] | None = None
    linear: LinearPart | None = None
    differences: Differences | None = None
    open: Callable[[Any, list[Box]], Tensor | list[Tensor]] | None = None
    kink_at_zero: bool = False
    slopes_in_unit_interval: bool = False
    absorbs_rounding: bool = False
    permutes: bool = False
    splits: bool = False
    jumps: bool = False
    overlap: Callable[[Any, tuple[int, ...]], int] | None = None
