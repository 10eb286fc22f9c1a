"""Efficient margin maximization (EMMA; Hu, Zou, Wang, Leino, Fredrikson 2023, arXiv:2301.12549)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bounded, global_ball
from workers.training.objectives.objective import Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.training_graph import TrainingGraph

__all__ = ["OBJECTIVES", "emma", "just_bearable"]


def just_bearable(found: Bounded, y: Tensor, least_share: float) -> Tensor:
    """e_j epsilon K_j, [batch, classes]: the share of what each class's logit may gain at which it
    would just win."""
    added = found.worst - found.logits
    with torch.no_grad():
        margins = found.logits.gather(1, y[:, None]) - found.logits
        share = (margins / added.clamp_min(1e-9)).clamp(least_share, 1.0)
    return share * added


def emma(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """Cross-entropy over f_j + e_j epsilon K_j, K_j = Lip |w_y - w_j| (section 4.2).

    e_j = clip((f_y - f_j) / (epsilon K_j), least_share, 1), without gradient: each class gets the
    share of epsilon at which it would just win.
    """
    found = global_ball(graph, x, y, at.epsilon, config)
    added = just_bearable(found, y, config.least_share)
    return F.cross_entropy(found.logits + added, y), found


OBJECTIVES = {"emma": Objective(emma, global_ball)}
