"""Local-Lip (Huang, Zhang, Shi, Kolter, Anandkumar, NeurIPS 2021): BCP's or GloRo's loss with
operator norms per sample."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from workers.training.config import Run
from workers.training.objectives.bounded import Bounded, local_ball_and_box
from workers.training.objectives.lipschitz.bcp import weighed_loss
from workers.training.objectives.lipschitz.gloro import with_bottom
from workers.training.objectives.scheduled_weights import Weighed
from workers.training.objectives.standard import standard
from workers.training.training_graph import Live

__all__ = ["local_lip_b", "local_lip_g"]


def local_lip_b(live: Live, x: Tensor, y: Tensor, at: Weighed, run: Run) -> tuple[Tensor, Bounded]:
    """BCP's loss ("-B")."""
    if at.clean:
        return standard(live, x, y, at, run)
    found = local_ball_and_box(live, x, y, at.epsilon, run)
    return weighed_loss(found, y, at, run), found


def local_lip_g(live: Live, x: Tensor, y: Tensor, at: Weighed, run: Run) -> tuple[Tensor, Bounded]:
    """GloRo's loss ("-G"): cross-entropy with the largest wrong worst logit as one more class.

    While epsilon is 0 (the published warm-up) plain cross-entropy: with nothing added, the further
    class would only double the largest wrong one.
    """
    if at.no_ball:
        return standard(live, x, y, at, run)
    found = local_ball_and_box(live, x, y, at.epsilon, run)
    loss = F.cross_entropy(with_bottom(found, y), y)
    if found.sparsity is not None and run.sparsity > 0.0:
        loss = loss + run.sparsity * found.sparsity
    return loss, found
