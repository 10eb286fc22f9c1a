"""Globally-robust networks (Leino, Wang, Fredrikson 2021, arXiv:2102.08452, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bounded, global_ball
from workers.training.objectives.objective import Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.training_graph import TrainingGraph

__all__ = ["OBJECTIVES", "gloro", "gloro_trades", "with_bottom"]


def with_bottom(found: Bounded, reference: Tensor) -> Tensor:
    """The logits and one more, the largest that another class can reach: [batch, classes + 1]."""
    others = found.worst.scatter(1, reference[:, None], -torch.inf)
    return torch.cat([found.logits, others.amax(1, keepdim=True)], dim=1)


def _globally(
    graph: TrainingGraph, x: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Bounded, Tensor]:
    """The bound relative to the PREDICTED class, as GloRo defines it, and the C + 1 logits."""
    found = global_ball(graph, x, None, at.epsilon, config)
    return found, with_bottom(found, found.logits.argmax(1))


def gloro(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """Cross-entropy over C + 1 classes; the last is never right."""
    found, extended = _globally(graph, x, at, config)
    return F.cross_entropy(extended, y), found


def gloro_trades(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """CE(f, y) + lambda KL(softmax f || softmax [f, bottom]) (section 3, TRADES variant)."""
    found, extended = _globally(graph, x, at, config)
    clean = F.log_softmax(found.logits, dim=1)
    robust = F.log_softmax(extended, dim=1)[:, :-1]
    divergence = (clean.exp() * (clean - robust)).sum(1).mean()
    return F.nll_loss(clean, y) + at.trades * divergence, found


OBJECTIVES = {
    "gloro": Objective(gloro, global_ball),
    "gloro-trades": Objective(gloro_trades, global_ball),
}
