"""Adjacent affine steps made one, where the fused map is of the same form.

The fused map's rounding terms and magnitudes cover the deployed, unfused evaluation.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from models.layers.kinds import Layer, Pad
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.graph.affine import Affine
from workers.verification.graph.affine_maps import Convolution, Dense, Diagonal
from workers.verification.graph.graph_step import GraphStep
from workers.verification.graph.partial_sums import with_whole_maps
from workers.verification.graph.skew.chains import with_skew_series
from workers.verification.layers.registry import rules_of

__all__ = ["fuse"]


def _merge(first: GraphStep, second: GraphStep) -> Affine | None:
    """second o first as one affine map, where it keeps its form."""
    before, after = first.op, second.op
    if isinstance(after, Diagonal) and isinstance(before, Dense | Convolution | Diagonal):
        return before.scaled_output(after) if _moderate(before, after) else None
    if isinstance(before, Diagonal) and isinstance(after, Dense | Convolution):
        return after.scaled_input(before) if _moderate(before, after) else None
    if isinstance(before, Pad) and before.value == 0.0 and isinstance(after, Convolution):
        return _padded(before, after) if _moderate(after) else None
    return None


def _moderate(*maps: Affine) -> bool:
    """``Affine.moderate`` of each, looked at once: a step is asked after every merge."""
    return all(op.scalar("moderate", partial(_is_moderate, op)) for op in maps)


def _is_moderate(op: Affine) -> Tensor:
    return torch.tensor(op.moderate())


def _padded(pad: Pad, conv: Convolution) -> Convolution:
    top, left, bottom, right = pad.padding
    size = (conv.geometry.size[0] - top - bottom, conv.geometry.size[1] - left - right)
    outer = conv.geometry.padding
    padding = (outer[0] + top, outer[1] + left, outer[2] + bottom, outer[3] + right)
    geometry = replace(conv.geometry, size=size, padding=padding)
    return replace(conv, in_shape=(conv.in_shape[0], *size), geometry=geometry)


def fuse(
    steps: list[GraphStep], known: dict[str, list[float]], clock: Clock = UNLIMITED
) -> list[GraphStep]:
    """Merge each step into its only consumer's predecessor where the product keeps its form.

    known: norms by name, of an earlier compilation; new ones are added. Raises OutOfTime.
    """
    steps = with_whole_maps(steps)
    steps = with_skew_series(steps, known, clock)
    while True:
        uses = [0] * (len(steps) + 1)
        for step in steps:
            for source in step.sources:
                uses[source] += 1
        for index, step in enumerate(steps):
            if len(step.sources) != 1 or step.sources[0] == 0 or uses[step.sources[0]] != 1:
                continue
            before = steps[step.sources[0] - 1]
            if (
                isinstance(before.op, Diagonal)
                and isinstance(step.op, Layer)
                and rules_of(step.op).permutes
            ):
                steps = _swapped(steps, step.sources[0] - 1, index, before.op, step.op)
                break
            merged = _merge(before, step)
            if merged is not None:
                fused = GraphStep(f"{before.name}+{step.name}", merged, before.sources, step.shape)
                steps = _replace(steps, step.sources[0] - 1, index, fused)
                break
        else:
            return steps


def _replace(steps: list[GraphStep], first: int, second: int, fused: GraphStep) -> list[GraphStep]:
    """Steps without ``first``, with ``fused`` in the place of ``second``."""

    def moved(source: int) -> int:
        return source - 1 if source > first + 1 else source

    result = []
    for index, step in enumerate(steps):
        if index == first:
            continue
        chosen = fused if index == second else step
        sources = tuple(moved(source) for source in chosen.sources)
        result.append(
            GraphStep(chosen.name, chosen.op, sources, chosen.shape, overlap=chosen.overlap)
        )
    return result


def _swapped(
    steps: list[GraphStep], first: int, second: int, diagonal: Diagonal, moved: Layer
) -> list[GraphStep]:
    """A diagonal map after a permutation of indices instead of before it."""

    def through(tensor: Tensor) -> Tensor:
        result: Tensor = moved(tensor.expand(diagonal.out_shape)[None])[0]
        return result

    shape = steps[second].shape
    after = Diagonal(
        shape,
        shape,
        through(diagonal.bias),
        through(diagonal.bias_magnitude),
        diagonal.terms,
        scale=through(diagonal.scale),
        inner=diagonal.inner,
    )
    result = list(steps)
    result[first] = GraphStep(steps[second].name, moved, steps[first].sources, shape)
    result[second] = GraphStep(steps[first].name, after, steps[second].sources, shape)
    return result
