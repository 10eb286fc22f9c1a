"""Margin cross-entropy for 1-Lipschitz networks (Prach and Lampert 2022, arXiv:2208.03160)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bounded, global_ball
from workers.training.objectives.objective import Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.training_graph import TrainingGraph

__all__ = ["OBJECTIVES", "one_lipschitz"]


def one_lipschitz(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """T CE((f_j + epsilon K_j) / T), K_j = Lip |w_y - w_j| without gradient.

    The offset asks for a radius of epsilon, in the last layer's own measure pair by pair (theirs is
    one number for all); a sample that exceeds it by more than a few T pulls no more. The factor T
    keeps gradients of one size.
    """
    found = global_ball(graph, x, y, at.epsilon, config)
    temperature = float(config.options.get("temperature", 0.25))
    shifted = found.logits + (found.worst - found.logits).detach()
    return temperature * F.cross_entropy(shifted / temperature, y), found


OBJECTIVES = {"one-lipschitz": Objective(one_lipschitz, global_ball)}
