"""Local-Lip (Huang, Zhang, Shi, Kolter, Anandkumar, NeurIPS 2021): BCP's or GloRo's loss with
operator norms per sample."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bounded, local_ball_and_box
from workers.training.objectives.lipschitz.bcp import scheduled_loss
from workers.training.objectives.lipschitz.gloro import with_bottom
from workers.training.objectives.objective import Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.objectives.standard import standard
from workers.training.training_graph import TrainingGraph

__all__ = ["OBJECTIVES", "local_lip_b", "local_lip_g"]


def local_lip_b(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """BCP's loss ("-B")."""
    if at.clean:
        return standard(graph, x, y, at, config)
    found = local_ball_and_box(graph, x, y, at.epsilon, config)
    return scheduled_loss(found, y, at, config), found


def local_lip_g(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """GloRo's loss ("-G"): cross-entropy with the largest wrong worst logit as one more class.

    While epsilon is 0 (the published warm-up) plain cross-entropy: with nothing added, the further
    class would only double the largest wrong one.
    """
    if at.no_ball:
        return standard(graph, x, y, at, config)
    found = local_ball_and_box(graph, x, y, at.epsilon, config)
    loss = F.cross_entropy(with_bottom(found, y), y)
    if found.sparsity is not None and config.sparsity > 0.0:
        loss = loss + config.sparsity * found.sparsity
    return loss, found


OBJECTIVES = {
    "local-lip-b": Objective(local_lip_b, local_ball_and_box),
    "local-lip-g": Objective(local_lip_g, local_ball_and_box),
}
