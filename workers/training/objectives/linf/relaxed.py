"""Worst logits by CROWN-IBP: the estimate on validation samples where boxes alone say nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.training.bounds.box import BoxPass, largest_gaps, pixel_box
from workers.training.bounds.last_layer import pair_differences
from workers.training.bounds.relaxation import least_values
from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bounded, reference_of
from workers.training.training_graph import TrainingGraph

__all__ = ["relaxed_bound"]

#: Samples at a time: each has a row per class, as large as the widest layer.
PIECE = 50


def relaxed_bound(
    graph: TrainingGraph,
    x: Tensor,
    reference: Tensor | None,
    epsilon: float | Tensor,
    config: TrainingConfig,
) -> Bounded:
    """The better one of interval bounds and CROWN-IBP, for every pair of classes."""
    logits = graph.logits(graph.features(x))
    chosen = reference_of(logits, reference)
    gaps = [
        _gaps(graph, samples, labels, epsilon)
        for samples, labels in zip(x.split(PIECE), chosen.split(PIECE), strict=True)
    ]
    return Bounded.of_gaps(logits, chosen, torch.cat(gaps))


def _gaps(graph: TrainingGraph, x: Tensor, labels: Tensor, epsilon: float | Tensor) -> Tensor:
    """Upper bounds of f_j - f_y, [batch, classes]."""
    passed = BoxPass(graph)
    features = passed.of(pixel_box(x, epsilon))
    bias = graph.logits(torch.zeros_like(features.lower[:1]))
    least = least_values(graph, passed.boxes, -pair_differences(graph.head_weight, labels))
    relaxed = bias - bias.expand(len(x), -1).gather(1, labels[:, None]) - least
    return torch.minimum(largest_gaps(graph, features, labels), relaxed)
