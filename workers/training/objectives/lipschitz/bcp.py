"""Box constraint propagation (Lee, Lee, Park, NeurIPS 2020): equation of section 4."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from workers.training.config import Run
from workers.training.objectives.bounded import Bounded, ball_and_box
from workers.training.objectives.scheduled_weights import Weighed
from workers.training.objectives.standard import standard
from workers.training.training_graph import Live

__all__ = ["bcp", "weighed_loss"]


def weighed_loss(found: Bounded, y: Tensor, at: Weighed, run: Run) -> Tensor:
    """kappa CE(f, y) + (1 - kappa) (CE(worst, y) + sparsity)."""
    robust = F.cross_entropy(found.worst, y)
    if found.sparsity is not None and run.sparsity > 0.0:
        robust = robust + run.sparsity * found.sparsity
    if at.robust:
        return robust
    return at.kappa * F.cross_entropy(found.logits, y) + (1.0 - at.kappa) * robust


def bcp(live: Live, x: Tensor, y: Tensor, at: Weighed, run: Run) -> tuple[Tensor, Bounded]:
    """Cross-entropy of the worst logits over ball and box, weighed with the clean one."""
    if at.clean:
        return standard(live, x, y, at, run)
    found = ball_and_box(live, x, y, at.epsilon, run)
    return weighed_loss(found, y, at, run), found
