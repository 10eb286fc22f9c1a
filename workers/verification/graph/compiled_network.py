"""A network compiled for verification: a short list of steps with exact parameters and norms.

Adjacent affine layers are fused where the fused map is of the same form, changes of the order of
axes that undo each other are left out (``axes_order``), index permutations stay exact, and a final
dense layer becomes the head, so that class differences can be bounded as one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from models.layers.kinds import Layer, Permute, Reshape
from models.network import INPUT, Network
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.graph.affine import Affine, Norms
from workers.verification.graph.affine_maps import Dense
from workers.verification.graph.axes_order import rows_of
from workers.verification.graph.fusion import fuse
from workers.verification.graph.graph_step import GraphStep, UnsupportedLayer
from workers.verification.graph.head import Head
from workers.verification.graph.known_norms import known_norms
from workers.verification.graph.sections.search import with_sections
from workers.verification.layers.registry import rules_of
from workers.verification.rounding import answer_gap

__all__ = ["CompiledNetwork", "GraphStep", "Head", "UnsupportedLayer"]


@dataclass(frozen=True)
class CompiledNetwork:
    """Steps in order, the head on the last value, and facts about the input.

    digest: of the network (``Network.graph_digest``); cache_dir: where a bound may keep what it has
    proved of the network by that digest.
    """

    input_shape: tuple[int, ...]
    steps: tuple[GraphStep, ...]
    head: Head
    float32_safe: bool
    digest: str
    cache_dir: Path | None = None

    @classmethod
    def compile(
        cls,
        network: Network,
        *,
        cache_dir: Path | None = None,
        estimate: bool = False,
        norms: bool = True,
        clock: Clock = UNLIMITED,
    ) -> CompiledNetwork:
        """Steps of ``network``, with operator norms from ``cache_dir`` or computed once.

        ``estimate`` takes the papers' power-iteration norms; without ``norms`` all are infinite,
        which is enough for boxes and costs nothing. Raises UnsupportedLayer; OutOfTime, with the
        norms found so far left in ``cache_dir``.
        """
        digest = network.graph_digest()
        cache = None if estimate else cache_dir
        with torch.no_grad(), known_norms(cache, digest) as known:
            steps = fuse(_translate(network), known, clock)
            steps, head = _split_head(network, steps)
            head = replace(head, gap=answer_gap(network.dropped_output))
            if norms:
                steps = _with_norms(steps, network.input_shape, known, estimate, clock)
        safe = all(step.op.float32_safe() for step in steps if isinstance(step.op, Affine))
        safe = safe and head.float32_safe()
        return cls(network.input_shape, tuple(steps), head, safe, digest, cache_dir)


def _without_scalars(layer: Layer, shape: tuple[int, ...]) -> Layer:
    """Values of shape () are held as (1,) here: then moving their axes is a view like another."""
    return Reshape(shape=(1,)) if shape == () and isinstance(layer, Reshape | Permute) else layer


def _translate(network: Network) -> list[GraphStep]:
    positions = {INPUT: 0}
    shapes = {INPUT: network.input_shape}
    steps: list[GraphStep] = []
    #: A layer that stands at several nodes is one map.
    made: dict[tuple[Layer, tuple[int, ...]], Affine] = {}
    for row in rows_of(network):
        layer = _without_scalars(row.layer, row.shape)
        shape = row.shape or (1,)
        sources = tuple(positions[source] for source in row.inputs)
        rules = rules_of(layer)
        before = shapes[row.inputs[0]]
        op: Affine | Layer = layer
        if rules.affine is not None:
            if (layer, before) not in made:
                made[layer, before] = rules.affine(layer, before)
            op = made[layer, before]
        overlap = 1 if rules.overlap is None else rules.overlap(layer, before)
        steps.append(GraphStep(row.name, op, sources, shape, overlap=overlap))
        positions[row.name] = len(steps)
        shapes[row.name] = shape
    return steps


def _split_head(network: Network, steps: list[GraphStep]) -> tuple[list[GraphStep], Head]:
    last = steps[-1]
    classes = network.classes
    if isinstance(last.op, Dense) and last.sources == (len(steps) - 1,):
        bias = last.op.bias.expand(classes).clone()
        magnitude = last.op.bias_magnitude.expand(classes).clone()
        squares = last.op.leaf_squares.expand(classes).clone()
        op = last.op
        head = Head(op.weight, bias, magnitude, op.terms, op.inner)
        return steps[:-1], replace(head, summation=op.summation, bias_square=squares)
    zeros = torch.zeros(classes, dtype=torch.float64)
    return steps, Head(None, zeros, zeros, 0.0)


def _with_norms(
    steps: list[GraphStep],
    input_shape: tuple[int, ...],
    known: dict[str, list[float]],
    estimate: bool,
    clock: Clock,
) -> list[GraphStep]:
    result: list[GraphStep] = []
    for index, step in enumerate(steps):
        norms = step.norms
        if isinstance(step.op, Affine):
            key = f"{index}:{step.name}"
            if key not in known:
                made = step.op.estimated_norms(clock) if estimate else step.op.norms(clock)
                known[key] = [made.spectral, made.absolute]
            norms = Norms(*known[key])
        result.append(GraphStep(step.name, step.op, step.sources, step.shape, norms, step.overlap))
    return with_sections(result, input_shape, known, clock)
