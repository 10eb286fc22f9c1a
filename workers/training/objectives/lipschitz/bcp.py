"""Box constraint propagation (Lee, Lee, Park, NeurIPS 2020): equation of section 4."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bounded, ball_and_box
from workers.training.objectives.objective import Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.objectives.standard import standard
from workers.training.training_graph import TrainingGraph

__all__ = ["OBJECTIVES", "bcp", "scheduled_loss"]


def scheduled_loss(
    found: Bounded, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> Tensor:
    """kappa CE(f, y) + (1 - kappa) (CE(worst, y) + sparsity)."""
    robust = F.cross_entropy(found.worst, y)
    if found.sparsity is not None and config.sparsity > 0.0:
        robust = robust + config.sparsity * found.sparsity
    if at.robust:
        return robust
    return at.kappa * F.cross_entropy(found.logits, y) + (1.0 - at.kappa) * robust


def bcp(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """Cross-entropy of the worst logits over ball and box and of the clean ones (kappa)."""
    if at.clean:
        return standard(graph, x, y, at, config)
    found = ball_and_box(graph, x, y, at.epsilon, config)
    return scheduled_loss(found, y, at, config), found


OBJECTIVES = {"bcp": Objective(bcp, ball_and_box)}
