"""The zonotope of COLT and CAP in training: its widths estimated by random projections, its points
by their error terms (Balunovic and Vechev 2020, sections 4 and 5; Wong et al. 2018, section 3.3).

The set behind the k-th ReLU has an error term in [-1, 1] for every pixel and for every neuron of
the ReLUs passed; none is dropped, and no matrix of terms is ever made. A point is the image of its
terms; a projection on them is a clip. How wide a set of terms is, sum_m |t_m|, is exact up to the
first map that mixes it; behind it the median of |sum_m R_m t_m| over Cauchy numbers R_m estimates
it, for sums of them are Cauchy with the sum of the scales. NOTHING here is a bound: half of the
estimates are too small. Certificates come from ``workers.verification`` alone, which knows none of
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.kinds import Add, Normalize, Permute, ReLU, Reshape, Shift
from workers.training.bounds.box import Box
from workers.training.config import TrainingError
from workers.training.trained_maps import SumMap, WeightedMap
from workers.training.training_graph import TrainingGraph
from workers.verification.graph.graph_step import GraphStep

__all__ = ["Lines", "Widths", "activations_of", "draw_cauchy", "draw_normal", "latent_points"]
__all__ += ["term_shapes"]

#: Larger random numbers are cut.
LARGEST = 1e10
_TINY = 1e-24

#: (number of the set of terms, shape of one projection [k, *shape]) -> Cauchy numbers.
Draw = Callable[[int, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Lines:
    """A ReLU on its set: slope z + middle +- half e, e the new terms; [batch, *shape] each.

    lower, upper: estimated ends of z.
    """

    lower: Tensor
    upper: Tensor
    slope: Tensor
    middle: Tensor

    @classmethod
    def over(cls, centre: Tensor, width: Tensor) -> Lines:
        """The parallelogram of least area over centre +- width; its half height is its middle."""
        lower, upper = centre - width, centre + width
        unstable = (lower < 0) & (upper > 0)
        room = torch.where(unstable, upper - lower, 1.0)
        slope = torch.where(unstable, upper / room, (lower >= 0).to(upper))
        middle = torch.where(unstable, -0.5 * slope * lower, 0.0)
        return cls(lower, upper, slope, middle)


def activations_of(graph: TrainingGraph, method: str = "COLT", *, sums: bool = False) -> list[int]:
    """Positions of the ReLUs among the steps, for the ``method`` that errors name.

    sums: branches that are added again are taken too. Raises TrainingError where the network is
    made of other things than affine layers and ReLUs, or no chain of them.
    """
    places = []
    for index, step in enumerate(graph.steps):
        kinds = (ReLU, Normalize, Permute, Reshape, Shift, *([Add] if sums else []))
        mixing = step.name in graph.weights or step.name in graph.sums
        chained = sums or step.sources == (index,)
        if not (chained and (isinstance(step.op, kinds) or mixing)):
            kind = step.op.kind if isinstance(step.op, Layer) else "affine"
            form, more = ("networks", ", sums") if sums else ("chains", "")
            raise TrainingError(
                "unsupported_architecture",
                f"{method} trains {form} of convolutions, dense layers, average pools{more} and "
                f"ReLUs; layer {step.name} ({kind}) is not in one",
                hint="mnist-convmed, cifar-convmed, cifar-convmedbig, mnist-small, for example",
                field="architecture",
            )
        if isinstance(step.op, ReLU):
            places.append(index)
    if not places:
        raise TrainingError(
            "unsupported_architecture",
            f"{method} needs a ReLU",
            field="architecture",
        )
    return places


def draw_cauchy(generator: torch.Generator, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard Cauchy numbers of this shape."""
    drawn = torch.rand(shape, generator=generator)
    return torch.tan(math.pi * (drawn - 0.5)).clamp(-LARGEST, LARGEST).to(like)


def draw_normal(generator: torch.Generator, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers of this shape."""
    return torch.randn(shape, generator=generator).to(like)


@dataclass
class _Terms:
    """One set of error terms on its way.

    width [batch, *shape]: exact until a map has mixed them, then None; begun: widths at their
    beginning; passed: what they have been through since, for projections made later; image
    [batch, k, *shape]: the projections, once they are needed; units: they are no projections but
    every term's own image. ball: the terms lie in a Euclidean ball, not each in [-1, 1].
    """

    number: int
    begun: Tensor
    width: Tensor | None
    passed: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    image: Tensor | None = None
    mixed: bool = False
    units: bool = False
    ball: bool = False


class Widths:
    """One walk of a batch's box through the network: centre, and how wide each set of terms is.

    Sets of at most ``exact`` terms are not projected. ``ball``: the input is not the box but the
    ball (ellipsoid) in it, whose projections are to be normal numbers, not Cauchy. Where a branch
    begins, all sets are projected: a sum adds the projections of the sets that both branches have.
    """

    def __init__(
        self,
        graph: TrainingGraph,
        box: Box,
        draw: Draw,
        projections: int,
        *,
        exact: float = 0,
        ball: bool = False,
    ) -> None:
        self.graph, self.draw, self.projections, self.exact = graph, draw, projections, exact
        self.centre = box.middle
        self.sets = [_Terms(0, box.half, box.half, ball=ball)]
        self.made, self.done = 1, 0
        #: Values that a later step than the next one takes, and what was known of them.
        self._forks = {s for i, step in enumerate(graph.steps) for s in step.sources if s != i}
        self._kept: dict[int, tuple[Tensor, list[_Terms]]] = {}
        self._keep()

    def until(self, index: int) -> Lines:
        """Walk to the ReLU at ``index``, or to the end: the lines of one there, not passed yet."""
        self.walk(index)
        for step in self.graph.steps[index : index + 1]:
            self.centre, self.sets = self._at(step.sources[0])
        return Lines.over(self.centre, self.width())

    def walk(self, index: int) -> None:
        """Walk to the step at ``index``, with no ReLU on the way."""
        while self.done < index:
            step = self.graph.steps[self.done]
            if isinstance(step.op, Add):
                self._join([self._at(source) for source in step.sources])
            else:
                self.centre, self.sets = self._at(step.sources[0])
                self._step(step)
            self.done += 1
            self._keep()

    def through(self, lines: Lines) -> None:
        """Pass the ReLU that comes next."""
        for terms in self.sets:
            self._pass(terms, lambda t, slope=lines.slope: t * slope[:, None])  # type: ignore[misc]
        self.centre = lines.slope * self.centre + lines.middle
        self.sets.append(_Terms(self.made, lines.middle, lines.middle))
        self.made += 1
        self.done += 1
        self._keep()

    def settle(self) -> None:
        """Make the projections of all sets that the next mixing map needs them of: with the weights
        as they are looked at now, with or without a gradient."""
        for terms in self.sets:
            if terms.mixed:
                self.image(terms)

    def width(self) -> Tensor:
        """Half the width of the last value's estimated box, [batch, *shape]."""
        total = torch.zeros_like(self.centre)
        for terms in self.sets:
            if terms.width is not None:
                total = total + terms.width
            else:
                total = total + _size(self.image(terms), terms)
        return total

    def gaps(self, pairs: Tensor) -> Tensor:
        """How far f_j - f_y may be from its middle: pairs [batch, classes, features] of the last
        layer's rows, [batch, classes]."""
        total = pairs.new_zeros(pairs.shape[:2])
        for terms in self.sets:
            if terms.width is not None and not terms.mixed and not terms.ball:
                total = total + torch.einsum("bcf,bf->bc", pairs.abs(), terms.width)
            else:
                images = torch.einsum("bcf,bkf->bkc", pairs, self.image(terms))
                total = total + _size(images, terms)
        return total

    def image(self, terms: _Terms) -> Tensor:
        """The projections of a set, [batch, k, *shape]."""
        if terms.image is None:
            numbers = self._units(terms)
            if numbers is None:
                numbers = self.draw(terms.number, (self.projections, *terms.begun.shape[1:]))
            terms.image = terms.begun[:, None] * numbers.to(terms.begun)
            for passed in terms.passed:
                terms.image = passed(terms.image)
            terms.passed = []
        return terms.image

    def _units(self, terms: _Terms) -> Tensor | None:
        """A unit vector for each term that is wide in some sample, [terms, *shape]; None where they
        are to be projected."""
        # By the number of all terms: a rank that has other samples decides alike.
        if terms.begun[0].numel() > self.exact:
            return None
        wide = (terms.begun.detach().flatten(1) > 0).any(0).nonzero().squeeze(1)
        # Where none is wide, one of width 0.
        wide = wide if len(wide) else wide.new_zeros(1)
        terms.units = True
        rows = terms.begun.new_zeros(len(wide), terms.begun[0].numel())
        return rows.scatter(1, wide[:, None], 1.0).unflatten(1, terms.begun.shape[1:])

    def _keep(self) -> None:
        """Keep what is known of the last value, if a branch begins with it."""
        if self.done not in self._forks:
            return
        for terms in self.sets:
            self.image(terms)
            terms.width, terms.mixed = None, True
        self._kept[self.done] = (self.centre, [replace(terms) for terms in self.sets])

    def _at(self, value: int) -> tuple[Tensor, list[_Terms]]:
        """What is known of the last value, or of one where a branch begins; to be gone on from."""
        if value == self.done:
            return self.centre, self.sets
        centre, sets = self._kept[value]
        return centre, [replace(terms) for terms in sets]

    def _join(self, branches: Sequence[tuple[Tensor, list[_Terms]]]) -> None:
        """The sum of the branches: sets of one of them alone stay as they are."""
        joined: dict[int, _Terms] = {}
        for _, sets in branches:
            for terms in sets:
                if terms.number in joined:
                    both = self.image(joined[terms.number]) + self.image(terms)
                    joined[terms.number] = replace(terms, image=both)
                else:
                    joined[terms.number] = terms
        self.centre = sum((centre for centre, _ in branches[1:]), branches[0][0])
        self.sets = list(joined.values())

    def _step(self, step: GraphStep) -> None:
        op = self.graph.map_at(step, self.centre)
        self.centre = self.graph.run(step, self.centre)
        for terms in self.sets:
            if not isinstance(op, WeightedMap | SumMap):
                self._pass(terms, lambda t: _each(lambda u: _moved(step, u), t))
                continue
            if terms.mixed:
                self.image(terms)
                terms.width = None
            elif terms.width is not None:
                terms.width = _reach(op, terms.width) if terms.ball else _absolute(op, terms.width)
                terms.mixed = True
            self._pass(terms, lambda t: _each(lambda u: _linear(op, u), t), widths=False)

    def _pass(
        self, terms: _Terms, apply: Callable[[Tensor], Tensor], *, widths: bool = True
    ) -> None:
        """Something linear: of numbers of their own, the widths too."""
        if widths and terms.width is not None:
            # Slopes and scales are not negative.
            terms.width = apply(terms.width[:, None])[:, 0]
        if terms.image is not None:
            terms.image = apply(terms.image)
        else:
            terms.passed.append(apply)


def _each(apply: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """``apply`` to [batch, k, *shape] as to one batch."""
    return apply(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])


def _linear(op: WeightedMap | SumMap, x: Tensor) -> Tensor:
    return op.linear(x) if isinstance(op, WeightedMap) else op.apply(x)


def _absolute(op: WeightedMap | SumMap, x: Tensor) -> Tensor:
    """|W| x."""
    if isinstance(op, SumMap):
        return op.apply(x)
    return op.layer.apply_weight(x, op.weight.abs(), None)


def _reach(op: WeightedMap | SumMap, x: Tensor) -> Tensor | None:
    """How far the image of the ellipsoid with half axes x reaches; None for a pool, whose
    projections tell."""
    if isinstance(op, SumMap):
        return None
    squares = op.layer.apply_weight(x.square(), op.weight.square(), None)
    return squares.add(_TINY).sqrt()


def _size(images: Tensor, terms: _Terms) -> Tensor:
    """From images [batch, k, ...] of a set of terms how wide it is, [batch, ...]."""
    if terms.ball:
        squares = images.square().sum(1)
        return (squares if terms.units else squares / images.shape[1]).add(_TINY).sqrt()
    return images.abs().sum(1) if terms.units else images.abs().median(dim=1).values


def _moved(step: GraphStep, x: Tensor) -> Tensor:
    """The linear part of a layer that moves, shifts or scales numbers, with scales > 0."""
    layer = step.op
    if isinstance(layer, Shift):
        return x
    result: Tensor = layer(x)  # type: ignore[operator]
    if isinstance(layer, Normalize):
        result = result - layer(torch.zeros_like(x[:1]))
    return result


def term_shapes(graph: TrainingGraph, lines: Sequence[Lines]) -> list[tuple[int, ...]]:
    """Shapes of the sets of terms, without the batch: pixels, then a set for each ReLU."""
    return [graph.network.input_shape, *(tuple(line.middle.shape[1:]) for line in lines)]


def latent_points(
    graph: TrainingGraph, box: Box, lines: Sequence[Lines], terms: Tensor, last: int
) -> Tensor:
    """The points of the set behind the step ``last`` with these terms, [batch, sum of the sets].

    lines: of the ReLUs up to there; without any, the points are pixels (``last`` -1).
    """
    shapes = term_shapes(graph, lines)
    sizes = [math.prod(shape) for shape in shapes]
    parts = [part.reshape(-1, *s) for part, s in zip(terms.split(sizes, 1), shapes, strict=True)]
    points = box.middle + box.half * parts[0]
    passed = 0
    for step in graph.steps[: last + 1]:
        if isinstance(step.op, ReLU):
            line = lines[passed]
            passed += 1
            points = line.slope * points + line.middle * (1.0 + parts[passed])
        else:
            points = graph.run(step, points)
    return points
