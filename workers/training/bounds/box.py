"""Boxes alone through a network in training, with gradients (IBP; Gowal et al. 2018).

The walk is ``workers.verification.forward.propagation``'s, as it is for ball and box; rounding is
left out, and batch norm has the statistics of the batch, so nothing here is a certificate. A box
has no clean input in it that batch norm could read: the pass of the clean samples comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.base import Layer
from workers.training.bounds.ball_and_box import TrainingPass, image_of
from workers.training.bounds.last_layer import pair_differences
from workers.training.training_graph import TrainingGraph
from workers.verification.enclosure import Enclosure
from workers.verification.forward.propagation import AffineMap
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.registry import rules_of

__all__ = ["Box", "BoxPass", "kinked", "largest_gaps", "pixel_box", "smallest_gaps"]


@dataclass(frozen=True)
class Box:
    """lower, upper [batch, *shape]."""

    lower: Tensor
    upper: Tensor

    @property
    def middle(self) -> Tensor:
        """[batch, *shape]."""
        return (self.lower + self.upper) * 0.5

    @property
    def half(self) -> Tensor:
        """Half the width, [batch, *shape]."""
        return (self.upper - self.lower) * 0.5


def pixel_box(x: Tensor, epsilon: float | Tensor) -> Box:
    """All pixels within ``epsilon`` of x, cut with [0, 1]."""
    return Box((x - epsilon).clamp_min(0.0), (x + epsilon).clamp_max(1.0))


def kinked(step: GraphStep) -> bool:
    """Whether the step is elementwise, with its only kink at 0: ReLU and the like."""
    return isinstance(step.op, Layer) and rules_of(step.op).kink_at_zero


class BoxPass(TrainingPass):
    """One pass of a box.

    ``shrinkage``: what the upper ends behind unstable ReLUs are multiplied with (SABR, Mueller et
    al. 2023, section 5). Below 1 the result is no bound: it trains networks, and nothing else reads
    it. ``boxes``: every value's box by its number (0 is the input, i + 1 step i's result).
    """

    def __init__(self, graph: TrainingGraph, *, shrinkage: float = 1.0) -> None:
        super().__init__(graph)
        self.shrinkage = shrinkage
        self.boxes: dict[int, Box] = {}

    def of(self, box: Box) -> Box:
        """The box of what the last layer takes."""
        self.boxes = {0: box}
        batch = len(box.lower)
        nowhere = torch.full((batch,), torch.inf, dtype=torch.float64, device=box.lower.device)
        valid = torch.ones(batch, dtype=torch.bool, device=box.lower.device)
        self.run(Enclosure(box.lower, nowhere, box.lower, box.upper, valid))
        return self.boxes[len(self.graph.steps)]

    def carry(self, index: int, step: GraphStep, inputs: list[Enclosure]) -> Enclosure:
        result = super().carry(index, step, inputs)
        assert result.lower is not None
        assert result.upper is not None
        self.boxes[index + 1] = Box(result.lower, result.upper)
        return result

    def affine(self, index: int, step: GraphStep, op: AffineMap, state: Enclosure) -> Enclosure:
        assert state.lower is not None
        assert state.upper is not None
        middle, half = op.interval(state.lower, state.upper)
        return _enclosure(middle - half, middle + half, state)

    def layer(self, index: int, step: GraphStep, inputs: list[Enclosure]) -> Enclosure:
        """The layer's image of the box; of some only a norm of 1 is known."""
        layer, first = step.op, inputs[0]
        assert isinstance(layer, Layer)
        assert first.lower is not None
        assert first.upper is not None
        if layer.one_lipschitz:
            box = Box(first.lower, first.upper)
            centre = layer(box.middle)
            reach = torch.linalg.vector_norm(box.half.flatten(1), dim=1)
            reach = reach.reshape(-1, *([1] * (centre.dim() - 1)))
            return _enclosure(centre - reach, centre + reach, first)
        lower, upper = image_of(layer, inputs)
        if self.shrinkage != 1.0 and kinked(step):
            unstable = (first.lower < 0) & (first.upper > 0)
            upper = torch.where(unstable, self.shrinkage * upper, upper)
        return _enclosure(lower, upper, first)


def largest_gaps(graph: TrainingGraph, box: Box, labels: Tensor) -> Tensor:
    """max over the box of f_j - f_y, [batch, classes], 0 for j = y: the last layer's rows are
    subtracted before they meet the box."""
    return _gaps(graph, box, labels, 1.0)


def smallest_gaps(graph: TrainingGraph, box: Box, labels: Tensor) -> Tensor:
    """min over the box of f_j - f_y, [batch, classes]."""
    return _gaps(graph, box, labels, -1.0)


def _gaps(graph: TrainingGraph, box: Box, labels: Tensor, side: float) -> Tensor:
    middle = graph.logits(box.middle)
    differences = pair_differences(graph.head_weight, labels).abs()
    reach = torch.bmm(differences, box.half.unsqueeze(2)).squeeze(2)
    return middle - middle.gather(1, labels[:, None]) + side * reach


def _enclosure(lower: Tensor, upper: Tensor, before: Enclosure) -> Enclosure:
    """A box without a ball; what stands for its centre is not looked at."""
    return Enclosure(lower, before.radius, lower, upper, before.valid)
