"""Ball and box through a network in training, with gradients (BCP, Lee et al. 2020).

The rules are those of ``workers.verification`` in the papers' arithmetic: norms are the running
estimates of ``TrainingGraph`` and rounding is left out, so nothing here is a certificate. Layers
that are not affine are monotone and 1-Lipschitz up to their factor: centre and both ends of the box
go through the layer itself, so that thresholds learn from all three (methods-lipschitz 1.2, 2.1).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from models.layers.kinds import BatchNorm, Normalize, Permute, Reshape, Shift
from models.network import INPUT, Node
from workers.training.training_graph import WEIGHTED, TrainingGraph
from workers.verification.enclosure import CORNER_SIZE, Enclosure
from workers.verification.forward.ball import joined_radius

__all__ = ["Intersection", "Propagation", "start"]

#: Layers after which the box of a ball is still the ball's own.
KEEPS_ROUND = (Normalize, Permute, Reshape, Shift)


def start(x: Tensor, epsilon: float | Tensor, norm: str) -> Enclosure:
    """The allowed inputs: a ball of ``epsilon`` in pixel units of ``norm``, cut with [0, 1]."""
    reach = epsilon * math.sqrt(x[0].numel()) if norm == "linf" else epsilon
    radius = reach * torch.ones(len(x), dtype=torch.float64, device=x.device)
    valid = torch.ones(len(x), dtype=torch.bool, device=x.device)
    lower, upper = (x - epsilon).clamp_min(0.0), (x + epsilon).clamp_max(1.0)
    return Enclosure(x, radius, lower, upper, valid, round=norm == "l2")


class Propagation:
    """One pass; ``Local`` (workers.training.bounds.local_norms) tightens it per sample."""

    def __init__(self, graph: TrainingGraph) -> None:
        self.graph = graph

    def run(self, state: Enclosure) -> Enclosure:
        """The enclosure of what the last layer takes."""
        values = {INPUT: state}
        for node in self.graph.body:
            inputs = [values[source] for source in node.inputs]
            layer = self.graph.layer(node)
            if isinstance(layer, WEIGHTED):
                values[node.name] = self.affine(node, inputs[0])
            elif isinstance(layer, BatchNorm):
                values[node.name] = self.scaled(node, inputs[0])
            else:
                values[node.name] = self.monotone(node, inputs)
        return values[self.graph.body[-1].name] if self.graph.body else state

    def affine(self, node: Node, state: Enclosure) -> Enclosure:
        """A convolution or dense layer: box of the interval and of the ball, intersected."""
        graph = self.graph
        weight, bias = graph.weights[node.name]
        centre = graph.run(node, state.centre)
        per_channel = [1, -1] + [1] * (centre.dim() - 2)
        rows = torch.linalg.vector_norm(weight.flatten(1), dim=1).reshape(per_channel)
        reach = _shaped(state.radius, centre) * rows
        radius = graph.norm(node.name).to(torch.float64) * state.radius
        if state.round:
            return Enclosure(centre, radius, centre - reach, centre + reach, state.valid)
        assert state.lower is not None
        assert state.upper is not None
        layer = graph.layer(node)
        assert isinstance(layer, WEIGHTED)
        # Half the weights instead of half the box: the same numbers, and far fewer to halve.
        half = weight * 0.5
        middle = layer.apply_weight(state.upper + state.lower, half, bias)
        extent = layer.apply_weight(state.upper - state.lower, half.abs(), None)
        lower, upper = Intersection.apply(centre, reach, middle, extent)
        return Enclosure(centre, radius, lower, upper, state.valid)

    def scaled(self, node: Node, state: Enclosure) -> Enclosure:
        """Batch norm: its scale and shift, from the clean inputs, for box and ball as well."""
        graph = self.graph
        scale, shift = graph.scale_and_shift(node.name, state.centre)
        centre = state.centre * scale + shift
        radius = graph.norm(node.name).to(torch.float64) * state.radius
        assert state.lower is not None
        assert state.upper is not None
        size, half = scale.abs(), scale * 0.5
        lower, upper = Intersection.apply(
            centre,
            _shaped(state.radius, centre) * size,
            torch.addcmul(shift, state.upper + state.lower, half),
            (state.upper - state.lower) * half.abs(),
        )
        return Enclosure(centre, radius, lower, upper, state.valid)

    def monotone(self, node: Node, inputs: list[Enclosure]) -> Enclosure:
        """Every other layer; of sums and means the box of the ball too, as of every linear map."""
        layer, graph = self.graph.layer(node), self.graph
        lower = [state.lower for state in inputs if state.lower is not None]
        upper = [state.upper for state in inputs if state.upper is not None]
        factor = graph.factor(node)
        radii = [state.radius for state in inputs]
        radius = radii[0] if len(radii) == 1 else joined_radius(graph.steps[node.name], radii)
        result = Enclosure(
            layer(*(state.centre for state in inputs)),
            radius if factor == 1.0 else factor * radius,
            layer(*lower),
            layer(*upper),
            inputs[0].valid,
            round=inputs[0].round and isinstance(layer, KEEPS_ROUND),
        )
        rows = graph.rows.get(node.name)
        if rows is not None:
            assert result.lower is not None
            assert result.upper is not None
            reach = _shaped(radius, result.centre) * rows
            result.lower = torch.maximum(result.lower, result.centre - reach)
            result.upper = torch.minimum(result.upper, result.centre + reach)
            return result
        return result if result.round else _box_to_ball(result)


class Intersection(torch.autograd.Function):
    """[centre -+ reach] and [middle -+ extent], intersected: (lower, upper).

    The gradients are those of ``torch.maximum`` and ``torch.minimum`` (half to each where two ends
    are equal), in a quarter of their passes over memory.
    """

    @staticmethod
    def forward(
        ctx: Any, centre: Tensor, reach: Tensor, middle: Tensor, extent: Tensor
    ) -> tuple[Tensor, Tensor]:
        lower, upper = centre - reach, centre + reach
        low, high = middle - extent, middle + extent
        # 1 where the first box's end is the inner one, 0 where the second's is, 1/2 where both are.
        first_below = (lower - low).sign_().add_(1.0).mul_(0.5)
        first_above = (high - upper).sign_().add_(1.0).mul_(0.5)
        ctx.save_for_backward(first_below, first_above)
        ctx.reach = reach.shape
        return torch.maximum(lower, low), torch.minimum(upper, high)

    @staticmethod
    def backward(ctx: Any, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first_below, first_above = ctx.saved_tensors
        below, above = lower * first_below, upper * first_above
        low, high = lower - below, upper - above
        return below + above, (above - below).sum_to_size(ctx.reach), low + high, high - low


def _box_to_ball(state: Enclosure) -> Enclosure:
    """``box_to_ball`` with a gradient that is 0, not NaN, where the box is a point."""
    assert state.lower is not None
    assert state.upper is not None
    if state.centre[0].numel() <= CORNER_SIZE:
        corner = torch.maximum(state.upper - state.centre, state.centre - state.lower)
        reach = torch.linalg.vector_norm(corner.flatten(1), dim=1).to(torch.float64)
        state.radius = torch.minimum(state.radius, reach)
    return state


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    """[batch] -> [batch, 1, ...] in the dtype of ``like``."""
    return values.to(like.dtype).reshape(-1, *([1] * (like.dim() - 1)))
