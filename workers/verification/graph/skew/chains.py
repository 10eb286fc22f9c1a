"""Chains z <- x + c_i K z of one skew map, found among the steps and taken as one (``SkewSeries``).

Recognised by what they compute, whoever wrote the file: the same kernel at every stage, exactly its
own negative transpose; a number in between, or none; no other reader of what lies inside.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import torch

from models.layers.kinds import Add
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.graph.affine_maps import Convolution, Dense, Diagonal
from workers.verification.graph.graph_step import GraphStep
from workers.verification.graph.skew.series import MORE_TERMS, SkewSeries

__all__ = ["with_skew_series"]

#: Stages of a chain at most: bounding a polynomial of degree 24 in rationals takes about a second,
#: one of degree 64 half a minute.
MOST_STAGES = 24
#: Divisors that are recognised as the whole numbers that they are.
MOST_DIVISOR = 64
#: Rounding steps of one factor, as ``SkewSeries`` counts them with one sum.
FACTOR_TERMS = MORE_TERMS - 2.0


def with_skew_series(
    steps: list[GraphStep], known: dict[str, list[float]], clock: Clock = UNLIMITED
) -> list[GraphStep]:
    """The steps, each chain of one skew kernel as one.

    known: norms by name, of an earlier compilation; new ones are added. Raises OutOfTime.
    """
    uses: dict[int, list[int]] = {}
    for index, step in enumerate(steps):
        for source in step.sources:
            uses.setdefault(source, []).append(index)
    replaced: dict[int, GraphStep] = {}
    gone: set[int] = set()
    for index in range(len(steps)):
        if index in gone:
            continue
        found = _chain(steps, index, uses)
        op = steps[index].op
        if found is not None and isinstance(op, Convolution | Dense):
            members, scales = found
            last = members[-1]
            name = "+".join((steps[index].name, steps[last].name))
            key = f"kernel {index}:{name}"
            series = SkewSeries.of(op, scales, known.get(key, ()), clock)
            known[key] = series.kernel_norms
            replaced[last] = GraphStep(name, series, steps[index].sources, steps[last].shape)
            gone.update(members[:-1])
    if not replaced:
        return steps
    place, kept = {0: 0}, []
    for index, step in enumerate(steps):
        if index in gone:
            continue
        step = replaced.get(index, step)
        kept.append(replace(step, sources=tuple(place[source] for source in step.sources)))
        place[index + 1] = len(kept)
    return kept


def _chain(
    steps: list[GraphStep], first: int, uses: dict[int, list[int]]
) -> tuple[list[int], tuple[Fraction, ...]] | None:
    """(steps of the longest chain that begins with this map, c_1 ... c_d), or None."""
    kernel, start = steps[first].op, steps[first].sources
    if not isinstance(kernel, Convolution | Dense) or not _is_skew(kernel):
        return None
    members: list[int] = []
    scales: list[Fraction] = []
    best = None
    at = first
    while len(scales) < MOST_STAGES:
        if not _same_map(steps[at].op, kernel):
            break
        part, scale = [at], Fraction(1)
        following = _only(uses, at)
        if following is not None and isinstance(factor := steps[following].op, Diagonal):
            found = _scalar(factor)
            if found is None:
                break
            scale = found
            part.append(following)
            following = _only(uses, following)
        if following is None or not isinstance(steps[following].op, Add):
            break
        before = part[-1] + 1
        if sorted(steps[following].sources) != sorted((before, start[0])) or before == start[0]:
            break
        members = [*members, *part, following]
        # The first map of the chain belongs to the innermost factor.
        scales = [scale, *scales]
        best = (members, tuple(scales))
        after = _only(uses, following)
        if after is None or steps[after].sources != (following + 1,):
            break
        at = after
    # One sum alone is x + K x: a residual map like any other, but its norm is known all the same.
    return best


def _only(uses: dict[int, list[int]], step: int) -> int | None:
    """The only step that reads this step's result."""
    readers = uses.get(step + 1, [])
    return readers[0] if len(readers) == 1 else None


def _same_map(op: object, kernel: Convolution | Dense) -> bool:
    if op is kernel:
        return True
    if not isinstance(op, Convolution | Dense) or type(op) is not type(kernel):
        return False
    if (
        isinstance(op, Convolution)
        and isinstance(kernel, Convolution)
        and op.geometry != kernel.geometry
    ):
        return False
    # Deployed alike, too: what one stage rounds, each does.
    alike = (op.terms, op.own_terms, op.inner) == (kernel.terms, kernel.own_terms, kernel.inner)
    return (
        alike
        and op.summation == kernel.summation
        and op.in_shape == kernel.in_shape
        and not bool(op.bias_magnitude.any())
        and (op.weight is kernel.weight or torch.equal(op.weight, kernel.weight))
    )


def _is_skew(kernel: Convolution | Dense) -> bool:
    """Whether the map is its own negative transpose, exactly, with no bias."""
    # Parts of a bias that cancel leave their rounding: its magnitude counts.
    if kernel.in_shape != kernel.out_shape or bool(kernel.bias_magnitude.any()):
        return False
    weight = kernel.weight
    if isinstance(kernel, Dense):
        return torch.equal(weight, -weight.T)
    geometry = kernel.geometry
    height, width = weight.shape[2:]
    half = ((height - 1) // 2, (width - 1) // 2)
    plain = geometry.stride == geometry.dilation == (1, 1) and geometry.groups == 1
    if not plain or height % 2 == 0 or width % 2 == 0 or geometry.padding != half + half:
        return False
    return torch.equal(weight, -weight.transpose(0, 1).flip(2, 3))


def _scalar(op: Diagonal) -> Fraction | None:
    """The one factor of an elementwise map without a shift, exactly; None where it is not that."""
    # One product or quotient: other elementwise maps round more often, and not their exact scale.
    if op.terms > FACTOR_TERMS or bool(op.bias_magnitude.any()) or op.scale.numel() == 0:
        return None
    value = float(op.scale.flatten()[0])
    if not bool((op.scale == value).all()) or value == 0.0:
        return None
    # A division by a whole number is held as the float64 next to its inverse; no float32 factor is.
    whole = round(1.0 / value)
    if abs(whole) <= MOST_DIVISOR and whole and 1.0 / whole == value:
        return Fraction(1, whole)
    single = float(torch.tensor(value, dtype=torch.float32))
    return Fraction(value) if single == value else None
