"""The backward pass of linear relaxations in training, with gradients: CROWN-IBP's (Zhang et al.
2020, arXiv:1906.06316) and CAP's (Wong and Kolter 2018).

Intermediate boxes are given, those of a ``BoxPass`` for example; linear relaxations are the
verifier's own rules with rounding left out. Rows go back to the pixels, or as far as every layer is
known: what arrives at another layer's result is bounded by that value's box. Nothing here is a
certificate.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.layers.base import Layer, Shape
from models.layers.kinds import Add
from workers.training.bounds.box import Interval, kinked
from workers.training.trained_maps import ScaledMap, WeightedMap
from workers.training.training_graph import TrainingGraph
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.registry import rules_of
from workers.verification.rounding import Rounding

__all__ = ["least_values"]

#: How the slope below an unstable ReLU is chosen: 1 where the box is mostly above 0, else 0.
RULE = "crown"
_TINY = 1e-24


def least_values(
    graph: TrainingGraph,
    boxes: Mapping[int, Interval],
    rows: Tensor,
    *,
    rule: str = RULE,
    radius: float | Tensor | None = None,
) -> Tensor:
    """Lower bounds of rows . features over the input: [batch, rows].

    rows [batch, rows, features]; features: what the last layer takes. boxes: by the numbers of
    their values, box 0 is the input; ``radius``: the input is the Euclidean ball around its middle.
    ``rule``: how slopes below unstable ReLUs are chosen, as the verifier's ``lower_slopes`` has it.
    """
    pending = {len(graph.steps): rows}
    result = rows.new_zeros(rows.shape[:2])
    for index in range(len(graph.steps) - 1, -1, -1):
        carried = pending.pop(index + 1, None)
        if carried is None:
            continue
        step = graph.steps[index]
        found = _through(graph, boxes, step, carried, rule)
        if found is None:
            result = result + _least(carried, boxes[index + 1])
            continue
        sources, gained = found
        result = result + gained
        for source, part in zip(step.sources, sources, strict=True):
            pending[source] = pending[source] + part if source in pending else part
    if 0 not in pending:
        return result
    if radius is None:
        return result + _least(pending[0], boxes[0])
    reach = pending[0].flatten(2).square().sum(2).add(_TINY).sqrt()
    return result + _sum(pending[0] * boxes[0].middle.unsqueeze(1)) - radius * reach


def _through(
    graph: TrainingGraph, boxes: Mapping[int, Interval], step: GraphStep, rows: Tensor, rule: str
) -> tuple[list[Tensor], Tensor | float] | None:
    """The rows on the step's inputs and what the constant gains, [batch, rows]; None where the
    layer is not known."""
    layer, shape = step.layer(Layer), graph.in_shapes[step.name]
    if kinked(step):
        return _relaxed(boxes[step.sources[0]], layer, rows, rule)
    if isinstance(layer, Add):
        return [rows for _ in step.sources], 0.0
    # Statistics of the batch are those of the clean pass: of these rows only the shape counts.
    op = graph.map_at(step, rows[:, 0])
    if isinstance(op, WeightedMap):
        back = op.adjoint(rows.flatten(0, 1)).reshape(*rows.shape[:2], *shape)
        return [back], 0.0 if op.bias is None else _sum(_channels(op.bias, rows) * rows)
    if isinstance(op, ScaledMap):
        return [rows * op.scale], _sum(rows * op.shift)
    if rules_of(layer).affine is not None or rules_of(layer).permutes:
        return _linear(layer, rows, shape)
    return None


def _relaxed(
    before: Interval, layer: Layer, rows: Tensor, rule: str
) -> tuple[list[Tensor], Tensor] | None:
    relax = rules_of(layer).relax
    if relax is None:
        return None
    lines = relax(layer, before.lower, before.upper, rule, Rounding.ignored())
    above, below = rows.clamp_max(0.0), rows.clamp_min(0.0)
    back = below * lines.lower_slope.unsqueeze(1) + above * lines.upper_slope.unsqueeze(1)
    gained = _sum(above * lines.upper_intercept.unsqueeze(1))
    if lines.lower_intercept is not None:
        gained = gained + _sum(below * lines.lower_intercept.unsqueeze(1))
    return [back], gained


def _linear(layer: Layer, rows: Tensor, shape: Shape) -> tuple[list[Tensor], Tensor]:
    """A fixed affine layer: its transpose is the gradient of rows . layer(z)."""
    with torch.enable_grad():
        zero = rows.new_zeros((rows.shape[0] * rows.shape[1], *shape)).requires_grad_()
        value = layer(zero)
        (back,) = torch.autograd.grad(
            value, zero, rows.flatten(0, 1).reshape_as(value), create_graph=True
        )
    constant = layer(rows.new_zeros((1, *shape)))
    return [back.reshape(*rows.shape[:2], *shape)], _sum(rows * constant.unsqueeze(1))


def _least(rows: Tensor, box: Interval) -> Tensor:
    """min over the box of rows . z, [batch, rows]."""
    return _sum(rows * box.middle.unsqueeze(1)) - _sum(rows.abs() * box.half.unsqueeze(1))


def _sum(values: Tensor) -> Tensor:
    """[batch, rows, ...] -> [batch, rows]."""
    return values.flatten(2).sum(2)


def _channels(values: Tensor, like: Tensor) -> Tensor:
    """[channels], broadcastable to ``like`` [batch, rows, channels, ...]."""
    return values.reshape(-1, *([1] * (like.dim() - 3)))
