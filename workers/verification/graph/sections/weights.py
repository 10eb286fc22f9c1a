"""How much a part of the graph stretches, number by number: joins of what shares nothing.

Backward through the part goes a bound sum_i q_i |change of number i|^2 on the square of the change
of the last value, beginning with q = 1. A move gives its number the weights of all places where it
ends; max and min of the same pair move together by no more than the pair does; an elementwise layer
of slope L multiplies by L^2, any other map of norm L takes the largest weight times L^2 to all its
inputs. At the start the root of the largest weight is a Lipschitz constant: 1 for slices that are
shuffled and joined, for GroupSort in whatever layout, for a branch on some of the channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.layers.activations import MaxMin
from models.layers.joins import Add, Maximum, Minimum, Slice
from models.layers.shapes import Permute, Reshape
from workers.verification.forward.ball import ball_rule, joined_slope
from workers.verification.graph.affine_maps import Diagonal
from workers.verification.graph.graph_step import GraphStep
from workers.verification.graph.sections.linear import MOVES, moved_places, numbered
from workers.verification.layers.registry import rules_of
from workers.verification.numerics import MANY, raised
from workers.verification.rounding import Rounding

__all__ = ["factor_of", "slopes_from", "weighted_norm"]


def factor_of(step: GraphStep) -> float:
    """The step's Lipschitz constant in real arithmetic, for its inputs as they are joined."""
    zero = torch.zeros(1, dtype=torch.float64)
    return ball_rule(step, zero, Rounding.ignored())[0]


def slopes_from(steps: Sequence[GraphStep], inner: Sequence[int], start: int) -> dict[int, float]:
    """Lipschitz constants of all values between in the value ``start``, step by step."""
    slopes = {start: 1.0}
    for index in inner:
        step = steps[index]
        slope = raised(joined_slope(step, [slopes[s] for s in step.sources]) * factor_of(step))
        section = step.section
        if section is not None and section.start in slopes:
            slope = min(slope, raised(slopes[section.start] * section.norm))
        slopes[index + 1] = slope
    return slopes


def weighted_norm(
    steps: Sequence[GraphStep], inner: Sequence[int], start: int, shape: tuple[int, ...]
) -> float:
    """Upper bound on the Lipschitz constant of the last of the steps ``inner`` in ``start``."""
    shapes = {start: shape, **{index + 1: steps[index].shape for index in inner}}
    slopes = slopes_from(steps, inner, start)
    partners = _partners(steps, inner)
    weights: dict[int, Tensor] = {}

    def give(value: int, more: Tensor) -> None:
        weights[value] = weights[value] + more if value in weights else more

    give(inner[-1] + 1, torch.ones(shapes[inner[-1] + 1], dtype=torch.float64))
    waiting: dict[int, Tensor] = {}
    for index in reversed(inner):
        step = steps[index]
        weight = weights.pop(index + 1, None)
        if index in waiting:
            twin = waiting.pop(index)
            weight = twin if weight is None else torch.maximum(weight, twin)
        if weight is None:
            # Inside a part that is known already.
            continue
        if partners.get(index, index) < index:
            waiting[partners[index]] = weight
            continue
        section = step.section
        # Of a pair the part that is known says nothing about both together.
        single = index not in partners
        if section is not None and single and section.start in shapes and _beats(step, slopes):
            most = raised(float(weight.max()) * section.norm**2)
            give(section.start, torch.full(shapes[section.start], most, dtype=torch.float64))
            continue
        for value, part in _before(step, weight, shapes, slopes):
            give(value, part)
    largest = float(weights[start].max()) if start in weights else 0.0
    return 1.0 if largest == 1.0 else raised(math.sqrt(largest), MANY)


def _beats(step: GraphStep, slopes: dict[int, float]) -> bool:
    """Whether the section is better than its steps, where both are known."""
    section = step.section
    if section is None:
        return False
    joined = joined_slope(step, [slopes[s] for s in step.sources]) * factor_of(step)
    return slopes[section.start] * section.norm < joined


def _partners(steps: Sequence[GraphStep], inner: Sequence[int]) -> dict[int, int]:
    """Max and min of the same two values, each by the other's position."""
    found: dict[tuple[type, frozenset[int]], int] = {}
    partners: dict[int, int] = {}
    same = _same_values(steps, inner)
    for index in inner:
        op = steps[index].op
        sources = frozenset(same.get(source, source) for source in steps[index].sources)
        if not isinstance(op, Maximum | Minimum) or len(sources) != 2:
            continue
        other = Minimum if isinstance(op, Maximum) else Maximum
        if (other, sources) in found:
            twin = found.pop((other, sources))
            partners[index], partners[twin] = twin, index
        else:
            found[type(op), sources] = index
    return partners


def _same_values(steps: Sequence[GraphStep], inner: Sequence[int]) -> dict[int, int]:
    """Values that are an earlier one, number by number, by its position: the same cut of the same
    value, which a file may take once for its maximum and once for its minimum."""
    same: dict[int, int] = {}
    known: dict[tuple[object, ...], int] = {}
    for index in inner:
        op = steps[index].op
        if isinstance(op, Permute | Reshape | Slice):
            sources = tuple(same.get(source, source) for source in steps[index].sources)
            key = (type(op), repr(op.config()), sources, tuple(steps[index].shape))
            same[index + 1] = known.setdefault(key, index + 1)
    return same


def _before(
    step: GraphStep,
    weight: Tensor,
    shapes: dict[int, tuple[int, ...]],
    slopes: dict[int, float],
) -> list[tuple[int, Tensor]]:
    """The weights of a step's inputs."""
    op, sources = step.op, step.sources
    if isinstance(op, MOVES):
        sizes = [math.prod(shapes[source]) for source in sources]
        places = numbered([shapes[source] for source in sources])
        flat = moved_places(op, places).flatten()
        total = torch.zeros(sum(sizes) + 1, dtype=torch.float64)
        total.index_add_(0, flat, weight.flatten())
        parts = total[1:].split(sizes)
        return [(s, p.reshape(shapes[s])) for s, p in zip(sources, parts, strict=True)]
    if isinstance(op, Maximum | Minimum):
        # |max(a, b) - max(a', b')|^2 <= |a - a'|^2 + |b - b'|^2, and so for both together.
        return [(source, weight) for source in sources]
    if isinstance(op, MaxMin):
        pair = torch.maximum(*weight.chunk(2))
        return [(sources[0], torch.cat([pair, pair]))]
    if isinstance(op, Add):
        # |a + b|^2 <= (1 + t) |a|^2 + (1 + 1 / t) |b|^2, t the quotient of how far they move.
        first, second = (max(slopes[source], 1e-12) for source in sources)
        shares = (raised(1.0 + second / first), raised(1.0 + first / second))
        return [(s, raised(weight * share)) for s, share in zip(sources, shares, strict=True)]
    if isinstance(op, Diagonal):
        square = raised(op.scale.square()).expand(op.out_shape)
        return [(sources[0], raised(weight * square.reshape(weight.shape)))]
    square_factor = raised(factor_of(step) ** 2)
    if rules_of(op).relax is not None:
        return [(sources[0], raised(weight * square_factor).reshape(shapes[sources[0]]))]
    most = raised(float(weight.max()) * square_factor)
    return [(source, torch.full(shapes[source], most, dtype=torch.float64)) for source in sources]
