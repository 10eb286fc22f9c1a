"""Lipschitz-margin training (Tsuzuku, Sato, Sugiyama 2018, arXiv:1802.04034, section 4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from workers.training.config import Run
from workers.training.objectives.bounded import Bounded, whole_network
from workers.training.objectives.scheduled_weights import Weighed
from workers.training.training_graph import Live

__all__ = ["lmt"]


def lmt(live: Live, x: Tensor, y: Tensor, at: Weighed, run: Run) -> tuple[Tensor, Bounded]:
    """Cross-entropy of the logits with sqrt(2) epsilon L added to all but the label's."""
    found = whole_network(live, x, y, at.epsilon, run)
    robust = F.cross_entropy(found.worst, y)
    if at.robust:
        return robust, found
    return at.kappa * F.cross_entropy(found.logits, y) + (1.0 - at.kappa) * robust, found
