"""Boxes alone through a network in training, with gradients (IBP; Gowal et al. 2018).

A box is carried as its middle and half its width: an affine map W takes them to W middle and
|W| half, and neither end has to be computed between the layers. Rounding is left out, and batch
norm has the statistics of the batch, so nothing here is a certificate. A box has no clean input in
it that batch norm could read: the pass of the clean samples comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.kinds import Add, ReLU
from workers.training.bounds.ball_and_box import image_of
from workers.training.bounds.last_layer import pair_differences
from workers.training.bounds.rectified import rectified
from workers.training.training_graph import TrainingGraph
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.registry import rules_of

__all__ = [
    "Box",
    "BoxPass",
    "CentredBox",
    "Interval",
    "kinked",
    "largest_gaps",
    "pixel_box",
    "smallest_gaps",
]


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


@dataclass(frozen=True)
class CentredBox:
    """middle and half the width, [batch, *shape]."""

    middle: Tensor
    half: Tensor

    @property
    def lower(self) -> Tensor:
        """[batch, *shape]."""
        return self.middle - self.half

    @property
    def upper(self) -> Tensor:
        """[batch, *shape]."""
        return self.middle + self.half


#: A box, whichever of its numbers it is held as.
Interval = Box | CentredBox


def pixel_box(x: Tensor, epsilon: float | Tensor) -> Box:
    """All pixels within ``epsilon`` of x, cut with [0, 1]."""
    return Box((x - epsilon).clamp_min(0.0), (x + epsilon).clamp_max(1.0))


def kinked(step: GraphStep) -> bool:
    """Whether the step is elementwise, with its only kink at 0: ReLU and the like."""
    return isinstance(step.op, Layer) and rules_of(step.op).kink_at_zero


class BoxPass:
    """One pass of a box.

    ``shrinkage``: what the upper ends behind unstable ReLUs are multiplied with (SABR, Mueller et
    al. 2023, section 5). Below 1 the result is no bound: it trains networks, and nothing else reads
    it. ``boxes``: the values' boxes by their numbers (0 is the input, i + 1 step i's result);
    between a convolution and the batch norm that is folded into it there is none.
    """

    def __init__(self, graph: TrainingGraph, *, shrinkage: float = 1.0) -> None:
        self.graph = graph
        self.shrinkage = shrinkage
        self.boxes: dict[int, Interval] = {}

    def of(self, box: Interval) -> Interval:
        """The box of what the last layer takes."""
        graph = self.graph
        self.boxes = {0: box}
        for index, step in enumerate(graph.steps):
            if index in graph.folded:
                continue
            inputs = [self.boxes[source] for source in graph.sources(index)]
            op = graph.affine_at(index, inputs[0].middle)
            if op is not None:
                box = CentredBox(*op.centred(inputs[0].middle, inputs[0].half))
            else:
                box = self._image(step, inputs)
            self.boxes[index + 1] = box
        return box

    def _image(self, step: GraphStep, inputs: list[Interval]) -> Interval:
        """The layer's image of the box; of some only a norm of 1 is known."""
        layer, first = step.layer(Layer), inputs[0]
        if layer.one_lipschitz:
            centre = layer(first.middle)
            reach = torch.linalg.vector_norm(first.half.flatten(1), dim=1)
            reach = reach.reshape(-1, *([1] * (centre.dim() - 1)))
            return CentredBox(centre, reach.expand_as(centre))
        if isinstance(layer, Add) or rules_of(layer).permutes:
            middle = layer(*(box.middle for box in inputs))
            return CentredBox(middle, layer(*(box.half for box in inputs)))
        if isinstance(layer, ReLU) and self.shrinkage == 1.0:
            return CentredBox(*rectified(first.middle, first.half))
        lower, upper = image_of(layer, [(box.lower, box.upper) for box in inputs])
        if self.shrinkage != 1.0 and kinked(step):
            unstable = (first.lower < 0) & (first.upper > 0)
            upper = torch.where(unstable, self.shrinkage * upper, upper)
        return Box(lower, upper)


def largest_gaps(graph: TrainingGraph, box: Interval, labels: Tensor) -> Tensor:
    """max over the box of f_j - f_y, [batch, classes], 0 for j = y: the last layer's rows are
    subtracted before they meet the box."""
    return _gaps(graph, box, labels, 1.0)


def smallest_gaps(graph: TrainingGraph, box: Interval, labels: Tensor) -> Tensor:
    """min over the box of f_j - f_y, [batch, classes]."""
    return _gaps(graph, box, labels, -1.0)


def _gaps(graph: TrainingGraph, box: Interval, labels: Tensor, side: float) -> Tensor:
    middle = graph.logits(box.middle)
    differences = pair_differences(graph.head_weight, labels).abs()
    reach = torch.bmm(differences, box.half.unsqueeze(2)).squeeze(2)
    return middle - middle.gather(1, labels[:, None]) + side * reach
