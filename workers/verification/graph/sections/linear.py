"""Linear parts of the graph as one map: sums of convolutions, windows that go around the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.joins import Add, Concat, Slice
from models.layers.shapes import Gather, Pad, Permute, Reshape
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.graph.affine import Affine
from workers.verification.graph.affine_maps import Convolution, Dense, Diagonal
from workers.verification.graph.graph_step import GraphStep
from workers.verification.graph.sections import few
from workers.verification.graph.sections.few import Few
from workers.verification.graph.sections.forms import Factors, Form, Kernel, Matrix, Moves, added
from workers.verification.norms.dense import dense_norm
from workers.verification.norms.spectral import materialize
from workers.verification.numerics import MANY, raised, sum_error

__all__ = ["MOVES", "Allowance", "LinearPart", "moved_places", "numbered", "whole_norm"]

#: Layers that only move numbers, and add constants (a padding).
MOVES = (Concat, Gather, Pad, Permute, Reshape, Slice)
#: Kernels of several groups are written out as one of up to so many numbers.
WRITTEN_OUT = 2**22
#: Linear parts without a form are written out as a matrix of up to so many columns and numbers.
COLUMNS, NUMBERS = 1024, 2**22
#: Multiplications of a symmetric matrix' eigenvalues, in units of its side cubed.
EIGENVALUES = 10


def moved_places(layer: Layer, places: Sequence[Tensor]) -> Tensor:
    """What a layer of ``MOVES`` does to the places of its inputs (``Moves.places``)."""
    if isinstance(layer, Pad):
        layer = Pad(padding=layer.padding)
    result: Tensor = layer(*(part[None] for part in places))
    return result[0]


def numbered(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The places of several values' numbers, counted on from 1."""
    sizes = [math.prod(shape) for shape in shapes]
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [
        torch.arange(first + 1, last + 1).reshape(shape)
        for first, last, shape in zip(ends, ends[1:], shapes, strict=False)
    ]


@dataclass
class Allowance:
    """Multiplications, about, that the parts of one network may take to be written out: a count of
    work, so that the same network gets the same norms everywhere."""

    left: float = 4e11

    def takes(self, columns: int, rows: int, steps: int) -> bool:
        """Whether so much is left, of which this part is taken."""
        side = min(columns, rows)
        cost = float(columns) * rows * (side + 2 * columns * steps) + EIGENVALUES * side**3
        if cost > self.left:
            return False
        self.left -= cost
        return True


@dataclass
class LinearPart:
    """Forms of the values that are linear in the value ``start`` of shape ``shape``."""

    steps: Sequence[GraphStep]
    start: int
    shape: tuple[int, ...]
    _known: dict[int, Form | None] = field(default_factory=dict, init=False)
    _few: dict[int, Few | None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        count = math.prod(self.shape)
        places = torch.arange(1, count + 1).reshape(self.shape)
        self._known[self.start] = Moves(places, self.shape)

    def form(self, value: int, inner: Sequence[int]) -> Form | None:
        """The form of ``value``, whose way from the start are the steps ``inner``, in order."""
        for index in inner:
            if index + 1 not in self._known:
                step = self.steps[index]
                self._known[index + 1] = self._after(step, [self._known[s] for s in step.sources])
        return self._known[value]

    def few(self, value: int, inner: Sequence[int]) -> Few | None:
        """The same as a map of few terms for each number; None where it is none."""
        self._few.setdefault(self.start, few.identity(self.shape))
        for index in inner:
            if index + 1 not in self._few:
                self._few[index + 1] = self._few_after(self.steps[index])
        return self._few[value]

    def _few_after(self, step: GraphStep) -> Few | None:
        inputs = [self._few[source] for source in step.sources]
        parts = [part for part in inputs if part is not None]
        if len(parts) < len(inputs):
            return None
        op = step.op
        if isinstance(op, Add):
            return few.added(parts[0], parts[1])
        if isinstance(op, Diagonal):
            return parts[0].scaled(op.scale.expand(op.out_shape).flatten())
        if isinstance(op, MOVES):
            shapes = [
                self.shape if s == self.start else self.steps[s - 1].shape for s in step.sources
            ]
            return few.moved(parts, moved_places(op, numbered(shapes)))
        return None

    def _after(self, step: GraphStep, inputs: Sequence[Form | None]) -> Form | None:
        forms = [form for form in inputs if form is not None]
        if len(forms) < len(inputs):
            return None
        op, first = step.op, forms[0]
        if isinstance(op, Add):
            return added(first, forms[1])
        if isinstance(op, MOVES):
            moves = [form for form in forms if isinstance(form, Moves)]
            if len(moves) == len(forms):
                return Moves(moved_places(op, [m.places for m in moves]), self.shape)
            if isinstance(op, Reshape) and isinstance(first, Factors):
                return first
            same = isinstance(op, Reshape) and isinstance(first, Matrix) and len(step.shape) == 1
            return first if same else None
        if isinstance(op, Diagonal):
            return _scaled(op, first)
        if isinstance(op, Convolution) and isinstance(first, Moves):
            return _convolved(op, first)
        if isinstance(op, Dense) and isinstance(first, Moves) and first.is_identity:
            return Matrix(op.weight) if len(self.shape) == 1 else None
        return None


def _convolved(op: Convolution, moves: Moves) -> Kernel | None:
    geometry = op.geometry
    weight = op.weight if geometry.groups == 1 else _written_out(op.weight, geometry.groups)
    if weight is None or geometry.dilation != (1, 1) or len(moves.in_shape) != 3:
        return None
    if moves.is_identity and tuple(moves.places.shape) == moves.in_shape:
        return Kernel(weight, geometry.size, geometry.stride, geometry.padding)
    around = None if any(geometry.padding) else moves.wrapping()
    if around is None:
        return None
    size = (moves.in_shape[1], moves.in_shape[2])
    return Kernel(weight, size, geometry.stride, around, circular=True)


def _written_out(weight: Tensor, groups: int) -> Tensor | None:
    """A grouped kernel as one that is zero between the groups."""
    if weight.numel() * groups > WRITTEN_OUT:
        return None
    parts = weight.reshape(groups, -1, *weight.shape[1:])
    full = weight.new_zeros(groups, parts.shape[1], groups, *weight.shape[1:])
    for index, part in enumerate(parts):
        full[index, :, index] = part
    return full.reshape(weight.shape[0], groups * weight.shape[1], *weight.shape[2:])


def _scaled(op: Diagonal, form: Form) -> Form | None:
    """A factor for each channel after a form; a shift alone changes nothing."""
    full = op.scale.expand(op.out_shape)
    if bool((full == 1.0).all()):
        return form
    if isinstance(form, Moves):
        return Factors(full.flatten(), form.in_shape) if form.is_identity else None
    if isinstance(form, Factors):
        return form.scaled(full.flatten())
    channels = full.reshape(op.out_shape[0], -1)
    if not bool((channels == channels[:, :1]).all()):
        return None
    return form.scaled(channels[:, 0])


def whole_norm(
    steps: Sequence[GraphStep],
    inner: Sequence[int],
    start: int,
    shape: tuple[int, ...],
    allowance: Allowance,
    clock: Clock = UNLIMITED,
) -> float:
    """Upper bound on the norm of a linear part of the graph, written out as one matrix.

    Infinite where it is too large for that or what is left, or not linear. What float64 changes in
    one number of the matrix is at most its terms times the roundoff of the same number with
    absolute values.
    """
    columns, rows = math.prod(shape), math.prod(steps[inner[-1]].shape)
    if columns > COLUMNS or columns * rows > NUMBERS:
        return math.inf
    terms = 0.0
    for index in inner:
        op = steps[index].op
        if not isinstance(op, (Add, Affine, *MOVES)):
            return math.inf
        terms += op.own_terms + 1.0 if isinstance(op, Affine) else 1.0
    if not terms < NUMBERS or not allowance.takes(columns, rows, len(inner)):
        return math.inf

    def run(x: Tensor, *, absolute: bool) -> Tensor:
        values = {start: x}
        for index in inner:
            op, inputs = steps[index].op, [values[source] for source in steps[index].sources]
            if isinstance(op, Affine):
                found = op.absolute(inputs[0]) if absolute else op.linear(inputs[0])
                values[index + 1] = found.reshape(len(x), *steps[index].shape)
            elif isinstance(op, Pad):
                values[index + 1] = Pad(padding=op.padding)(*inputs)
            else:
                values[index + 1] = op(*inputs)
        return values[inner[-1] + 1]

    matrix = materialize(lambda x: run(x, absolute=False), shape, clock)
    sizes = materialize(lambda x: run(x, absolute=True), shape, clock)
    lost = sum_error(math.ceil(terms)) * float(sizes.norm())
    return raised(dense_norm(matrix, clock) + lost, MANY)
