"""Plain cross-entropy: the baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bounded, global_ball
from workers.training.objectives.objective import Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.training_graph import TrainingGraph

__all__ = ["OBJECTIVES", "standard"]


def standard(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """(loss, logits). Nothing is bounded: unless epsilon is 0, no sample counts as robust."""
    logits = graph.logits(graph.features(x))
    loss = F.cross_entropy(logits, y)
    if at.no_ball:
        return loss, Bounded(logits, logits)
    unbounded = torch.full_like(logits, torch.inf).scatter(1, y[:, None], 0.0)
    return loss, Bounded(logits, logits.detach() + unbounded)


OBJECTIVES = {"standard": Objective(standard, global_ball)}
