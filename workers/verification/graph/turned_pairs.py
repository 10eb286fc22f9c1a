"""Sorted pairs as absolute values between rotations, so that a bound meets one kink for each pair.

With v = (a - b) / sqrt 2 and u = (a + b) / sqrt 2, a rotation of (a, b), the rotation back of
(|v|, u) is (max(a, b), min(a, b)), in real arithmetic exactly. Rotations keep every ball, rows go
through them exactly, and |v| alone is left to be bounded, over a box of v's own: that of a - b is
up to sqrt 2 times as narrow as what the boxes of a and b leave. A sorted axis is a sorting network:
layers of such pairs (Batcher 1968).

v and u are no values of the deployed network. They are the real numbers that its values a and b
make; so nothing is rounded there but what the verifier itself rounds, and what the rotation back
makes of them is the deployed network's own result again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.layers.activations import MaxMin
from models.layers.base import Layer
from models.layers.euclidean import Sort
from models.layers.kinds import Abs, Gather, Permute
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.graph.affine import Affine, Norms
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.graph_step import GraphStep, Section
from workers.verification.numerics import raised

__all__ = ["PairTurn", "with_turned_pairs"]

ROOT_HALF = math.sqrt(0.5)
#: Roundings of one result: of the constant, of the sum, of the product.
OWN_TERMS = 3.0
#: Axes of more numbers stay sorted as a whole: their network has too many layers.
LONGEST_AXIS = 8


@dataclass(frozen=True, eq=False)
class PairTurn(Affine):
    """(a, b) -> (a - b, a + b) / sqrt 2 along the first axis; ``back``: the inverse, its transpose.

    a: the first ``pairs`` numbers of the axis, b: as many after them; others stay. Orthogonal: W
    and the norms of its rows and columns are 1; |W| has the norm sqrt 2.
    """

    pairs: int = field(kw_only=True)
    back: bool = field(kw_only=True)

    def linear(self, x: Tensor) -> Tensor:
        return self._turned(x, self.back)

    def adjoint(self, y: Tensor) -> Tensor:
        """W^T y: [rows, channels, ...] -> the same shape; of patches too."""
        return self._turned(y, not self.back)

    def _turned(self, x: Tensor, back: bool) -> Tensor:
        first, second, rest = self._parts(x)
        if back:
            first, second = first + second, second - first
        else:
            first, second = first - second, first + second
        return torch.cat([first * ROOT_HALF, second * ROOT_HALF, rest], dim=1)

    def absolute(self, x: Tensor) -> Tensor:
        first, second, rest = self._parts(x)
        both = (first + second) * ROOT_HALF
        return torch.cat([both, both, rest], dim=1)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x[:, : self.pairs], x[:, self.pairs : 2 * self.pairs], x[:, 2 * self.pairs :]

    def weights(self) -> list[Tensor]:
        return [torch.tensor([ROOT_HALF, 1.0], dtype=torch.float64)]

    def row_norms_square(self) -> Tensor:
        return torch.ones((), dtype=torch.float64)

    def largest_column(self) -> float:
        return 1.0

    def spectral(self, clock: Clock = UNLIMITED) -> float:
        return 1.0

    def absolute_norm(self, clock: Clock = UNLIMITED) -> float:
        return raised(math.sqrt(2.0))

    def partners(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(first, second, share of first, share of second): which numbers of the input's first axis
        make those at ``places``, float64; where a number stays, the second's share is 0."""
        paired, upper = places < 2 * self.pairs, places >= self.pairs
        first = torch.where(paired & upper, places - self.pairs, places)
        second = torch.where(paired, first + self.pairs, first)
        half = torch.full(places.shape, ROOT_HALF, dtype=torch.float64, device=places.device)
        one = torch.where(paired, half, 1.0)
        two = torch.where(paired, half, 0.0)
        if self.back:
            return first, second, torch.where(paired & upper, -one, one), two
        return first, second, one, torch.where(upper, two, -two)


def with_turned_pairs(compiled: CompiledNetwork) -> CompiledNetwork:
    """The same network with every MaxMin and every short sorted axis as turned pairs.

    The values of the last steps of each are those of the deployed network, as ever; ``also`` says
    there what the layer itself knows of their boxes. The same object where nothing is to be turned.
    """
    if not any(_turns(step) for step in compiled.steps):
        return compiled
    steps: list[GraphStep] = []
    moved = {0: 0}
    for index, step in enumerate(compiled.steps):
        sources = tuple(moved[source] for source in step.sources)
        if _turns(step):
            steps.extend(_chain(replace(step, sources=sources, section=None), len(steps)))
        else:
            section = _renumbered(step.section, moved, len(steps))
            steps.append(replace(step, sources=sources, section=section))
        moved[index + 1] = len(steps)
    return replace(compiled, steps=tuple(steps))


def _turns(step: GraphStep) -> bool:
    op = step.op
    if isinstance(op, Sort):
        return 2 <= step.shape[op.axis] <= LONGEST_AXIS
    return isinstance(op, MaxMin)


def _renumbered(section: Section | None, moved: dict[int, int], last: int) -> Section | None:
    """The section with the steps that stand for its own; ``last``: the one where it ends."""
    if section is None:
        return None
    inner = section.steps[:-1]
    steps = [place for index in inner for place in range(moved[index], moved[index + 1])]
    return Section(moved[section.start], (*steps, last), section.norm)


def _chain(step: GraphStep, count: int) -> Iterator[GraphStep]:
    """The steps in the place of one that sorts, behind ``count`` others."""
    parts = list(_parts(step))
    source, shape = step.sources[0], step.shape
    for number, op in enumerate(parts):
        last = number == len(parts) - 1
        shape = op.out_shape if isinstance(op, Affine) else op.output_shape(shape)
        norms = Norms(op.spectral(), op.absolute_norm()) if isinstance(op, Affine) else step.norms
        yield GraphStep(
            step.name if last else f"{step.name} {number}",
            op,
            (source,),
            shape,
            norms,
            also=step if last else None,
        )
        source = count + number + 1


def _parts(step: GraphStep) -> Iterator[Affine | Layer]:
    op, shape = step.op, step.shape
    if isinstance(op, MaxMin):
        yield from _pairs(shape, shape[0] // 2)
        return
    if not isinstance(op, Sort):
        raise TypeError(f"{step.kind} sorts nothing")
    order = [op.axis, *(axis for axis in range(len(shape)) if axis != op.axis)]
    if op.axis:
        yield Permute(axes=order)
    ordered = tuple(shape[axis] for axis in order)
    # Which number of the axis stands where at the moment.
    stands = list(range(ordered[0]))
    for layer in _comparisons(ordered[0]):
        wanted = [larger for larger, _ in layer] + [smaller for _, smaller in layer]
        wanted += [place for place in range(ordered[0]) if place not in wanted]
        yield from _gathered(stands, wanted)
        yield from _pairs(ordered, len(layer))
        stands = wanted
    ascending = list(range(ordered[0]))
    yield from _gathered(stands, ascending[::-1] if op.descending else ascending)
    if op.axis:
        yield Permute(axes=[order.index(axis) for axis in range(len(shape))])


def _pairs(shape: tuple[int, ...], pairs: int) -> Iterator[Affine | Layer]:
    """The larger ones of the pairs first, then the smaller ones, then what is not compared."""
    zero = torch.zeros((), dtype=torch.float64)
    for back in (False, True):
        yield PairTurn(
            shape, shape, zero, zero, 0.0, pairs=pairs, back=back, least_own_terms=OWN_TERMS
        )
        if not back:
            yield Abs(channels=pairs)


def _gathered(stands: list[int], wanted: list[int]) -> Iterator[Layer]:
    if stands != wanted:
        yield Gather(torch.tensor([stands.index(place) for place in wanted]))


def _comparisons(count: int) -> Iterator[list[tuple[int, int]]]:
    """Layers of comparisons (where the larger one goes, where the smaller one goes) that put
    ``count`` numbers in ascending order: Batcher's odd-even merge sort."""
    size = 1
    while size < count:
        reach = size
        while reach:
            yield [
                (low + reach, low)
                for start in range(reach % size, count - reach, 2 * reach)
                for low in range(start, min(start + reach, count - reach))
                if low // (2 * size) == (low + reach) // (2 * size)
            ]
            reach //= 2
        size *= 2
