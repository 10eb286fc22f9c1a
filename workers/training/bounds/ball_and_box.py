"""Ball and box through a network in training, with gradients (BCP, Lee et al. 2020).

The walk and the arithmetic are those of ``workers.verification.forward.propagation``; norms are the
running estimates of ``TrainingGraph`` and rounding is left out, so nothing here is a certificate.
Layers that are not affine are monotone and 1-Lipschitz up to their factor: centre and both ends of
the box go through the layer itself, so that thresholds learn from all three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.kinds import Normalize, Permute, Reshape, Shift
from workers.training.training_graph import TrainingGraph
from workers.verification.clock import UNLIMITED
from workers.verification.enclosure import CORNER_SIZE, Enclosure
from workers.verification.forward.ball import joined_radius
from workers.verification.forward.propagation import AffineMap, ForwardPass
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.registry import rules_of
from workers.verification.rounding import Rounding

__all__ = ["Intersection", "TrainingPass", "image_of", "start"]

#: Layers after which the box of a ball is still the ball's own.
KEEPS_ROUND = (Normalize, Permute, Reshape, Shift)


def start(x: Tensor, epsilon: float | Tensor, norm: str) -> Enclosure:
    """The allowed inputs: a ball of ``epsilon`` in pixel units of ``norm``, cut with [0, 1]."""
    reach = epsilon * math.sqrt(x[0].numel()) if norm == "linf" else epsilon
    radius = reach * torch.ones(len(x), dtype=torch.float64, device=x.device)
    valid = torch.ones(len(x), dtype=torch.bool, device=x.device)
    lower, upper = (x - epsilon).clamp_min(0.0), (x + epsilon).clamp_max(1.0)
    return Enclosure(x, radius, lower, upper, valid, round=norm == "l2")


class TrainingPass(ForwardPass):
    """One pass; ``LocalTrainingPass`` (workers.training.bounds.local_norms) tightens it per sample.

    The weights are those of the step, norms its running estimates, and boxes are cut with one
    function that has a gradient.
    """

    def __init__(self, graph: TrainingGraph) -> None:
        super().__init__(Rounding.ignored(), UNLIMITED)
        self.graph = graph

    def run(self, state: Enclosure) -> Enclosure:
        """The enclosure of what the last layer takes."""
        return self.through(self.graph.steps, state)

    def map_of(self, step: GraphStep, state: Enclosure) -> AffineMap | None:
        return self.graph.map_at(step, state.centre)

    def radius(self, step: GraphStep, radius: Tensor, size: Tensor) -> Tensor:
        factor = self.graph.factor(step)
        return (factor.to(torch.float64) if isinstance(factor, Tensor) else factor) * radius

    def reach(
        self, step: GraphStep, op: AffineMap, centre: Tensor, radius: Tensor, size: Tensor
    ) -> Tensor:
        return _shaped(radius, centre) * op.row_norms_like(centre)

    def intersection(
        self, step: GraphStep, op: AffineMap, centre: Tensor, state: Enclosure, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert state.lower is not None
        assert state.upper is not None
        reach = self.reach(step, op, centre, state.radius, size)
        lower, upper = Intersection.apply(centre, reach, *op.interval(state.lower, state.upper))
        return lower, upper

    def layer(self, index: int, step: GraphStep, inputs: list[Enclosure]) -> Enclosure:
        """Every other layer: its image of the box, or 1-Lipschitz by construction and no more
        known of it."""
        layer = step.layer(Layer)
        centre = layer(*(state.centre for state in inputs))
        radii = [state.radius for state in inputs]
        radius = radii[0] if len(radii) == 1 else joined_radius(step, radii)
        factor = self.graph.factor(step)
        radius = radius if factor == 1.0 else factor * radius
        if layer.one_lipschitz:
            reach = _shaped(radius, centre)
            return Enclosure(centre, radius, centre - reach, centre + reach, inputs[0].valid)
        lower, upper = image_of(layer, [_ends(state) for state in inputs])
        is_round = inputs[0].round and isinstance(layer, KEEPS_ROUND)
        result = Enclosure(centre, radius, lower, upper, inputs[0].valid, round=is_round)
        return result if is_round else _box_to_ball(result)


def image_of(layer: Layer, boxes: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The image of the inputs' boxes: by the layer's rule, else of its values at both ends."""
    rule = rules_of(layer).image
    if rule is not None:
        return rule(layer, list(boxes))
    lower, upper = zip(*boxes, strict=True)
    return layer(*lower), layer(*upper)


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


def _ends(state: Enclosure) -> tuple[Tensor, Tensor]:
    assert state.lower is not None
    assert state.upper is not None
    return state.lower, state.upper


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    """[batch] -> [batch, 1, ...] in the dtype of ``like``."""
    return values.to(like.dtype).reshape(-1, *([1] * (like.dim() - 1)))
