"""Finds the parts of the graph that are worth knowing as a whole, and proves their norms.

They end in a join (a sum, values side by side, maxima), or in a convolution of an image whose
padding is written as joined slices. A part is kept where its norm is less than what its steps give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from models.layers.joins import Add
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.forward.ball import has_ball_rule
from workers.verification.graph.affine import Norms
from workers.verification.graph.affine_maps import Convolution
from workers.verification.graph.graph_step import GraphStep, Section
from workers.verification.graph.sections.dominators import Dominators
from workers.verification.graph.sections.forms import Kernel, Moves
from workers.verification.graph.sections.linear import (
    MOVES,
    Allowance,
    LinearPart,
    whole_norm,
)
from workers.verification.graph.sections.residuals import residual_norm
from workers.verification.graph.sections.weights import slopes_from, weighted_norm
from workers.verification.numerics import raised

__all__ = ["with_sections"]

#: Steps of one part, at most: each costs a little per sample.
LONGEST = 128
#: Share of the norm below which a gain is not worth it.
LEAST_GAIN = 1e-6


def with_sections(
    steps: Sequence[GraphStep],
    input_shape: tuple[int, ...],
    known: dict[str, list[float]],
    clock: Clock = UNLIMITED,
) -> list[GraphStep]:
    """The steps, with what is known of the parts that end in them; norms of steps must be known.

    known: norms by name, of an earlier compilation; new ones are added. Raises OutOfTime.
    """
    result = list(steps)
    graph, allowance = Dominators(result), Allowance()
    shapes = [input_shape, *(step.shape for step in steps)]
    for index, step in enumerate(result):
        start = _start(graph, index)
        if start is None:
            continue
        inner = graph.between(start, index + 1)
        if len(inner) > LONGEST or not all(has_ball_rule(result[i].op) for i in inner):
            continue
        key = f"section {start}-{index}:{step.name}"
        if key not in known:
            by_steps = slopes_from(result, inner, start)[index + 1]
            norm = _norm(graph, start, inner, shapes[start], by_steps, allowance, clock)
            known[key] = [norm, by_steps]
        norm, by_steps = known[key]
        if norm < by_steps * (1.0 - LEAST_GAIN):
            whole = _around(result, start, inner, shapes[start], norm)
            result[index] = replace(step, section=Section(start, inner, norm, whole))
    return result


def _around(
    steps: Sequence[GraphStep],
    start: int,
    inner: tuple[int, ...],
    shape: tuple[int, ...],
    norm: float,
) -> Norms | None:
    """``Section.whole`` of a part of this norm."""
    last = steps[inner[-1]]
    if not isinstance(last.op, Convolution):
        return None
    part = LinearPart(steps, start, shape)
    form, moves = part.form(inner[-1] + 1, inner), part.form(last.sources[0], inner[:-1])
    if not (isinstance(form, Kernel) and form.takes_once and isinstance(moves, Moves)):
        return None
    return Norms(norm, raised(last.norms.absolute * moves.norm()))


def _start(graph: Dominators, index: int) -> int | None:
    """Where a part that ends in this step begins; None where none is looked for."""
    step = graph.steps[index]
    if len(step.sources) > 1:
        return graph.above[index + 1]
    if not isinstance(step.op, Convolution):
        return None
    # Back through joined slices.
    at, start = step.sources[0], None
    while at > 0:
        before = graph.above[at]
        inner = graph.between(before, at)
        if not all(isinstance(graph.steps[i].op, MOVES) for i in inner):
            break
        if len(inner) > 1:
            start = before
        at = before
    return start


def _norm(
    graph: Dominators,
    start: int,
    inner: tuple[int, ...],
    shape: tuple[int, ...],
    by_steps: float,
    allowance: Allowance,
    clock: Clock,
) -> float:
    """The least of the bounds that are known."""
    steps, last = graph.steps, inner[-1]
    best = by_steps
    part = LinearPart(steps, start, shape)
    form = part.form(last + 1, inner)
    if form is not None:
        best = min(best, form.norm(clock))
    else:
        few = part.few(last + 1, inner)
        best = best if few is None else min(best, few.norm(clock))
        if few is None and isinstance(steps[last].op, Add):
            best = min(best, residual_norm(graph, start, last, shape, clock))
    if best > 1.0 and len(steps[last].sources) > 1:
        best = min(best, weighted_norm(steps, inner, start, shape))
    if best > 1.0 and form is None:
        best = min(best, whole_norm(steps, inner, start, shape, allowance, clock))
    return best
