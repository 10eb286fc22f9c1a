"""Plain cross-entropy: the baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.training.config import Run
from workers.training.objectives.bounded import Bounded
from workers.training.objectives.scheduled_weights import Weighed
from workers.training.training_graph import Live

__all__ = ["standard"]


def standard(live: Live, x: Tensor, y: Tensor, at: Weighed, run: Run) -> tuple[Tensor, Bounded]:
    """(loss, logits). Nothing is bounded: unless epsilon is 0, no sample counts as robust."""
    logits = live.logits(live.features(x))
    loss = F.cross_entropy(logits, y)
    if at.no_ball:
        return loss, Bounded(logits, logits)
    unbounded = torch.full_like(logits, torch.inf).scatter(1, y[:, None], 0.0)
    return loss, Bounded(logits, logits.detach() + unbounded)
