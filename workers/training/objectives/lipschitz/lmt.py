"""Lipschitz-margin training (Tsuzuku, Sato, Sugiyama 2018, arXiv:1802.04034, section 4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bounded, whole_network
from workers.training.objectives.objective import Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.training_graph import TrainingGraph

__all__ = ["OBJECTIVES", "lmt"]


def lmt(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """Cross-entropy of the logits with sqrt(2) epsilon L added to all but the label's."""
    found = whole_network(graph, x, y, at.epsilon, config)
    robust = F.cross_entropy(found.worst, y)
    if at.robust:
        return robust, found
    return at.kappa * F.cross_entropy(found.logits, y) + (1.0 - at.kappa) * robust, found


OBJECTIVES = {"lmt": Objective(lmt, whole_network)}
