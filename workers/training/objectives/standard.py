"""Plain cross-entropy: the baseline."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from workers.training.live import Live
from workers.training.objectives.bounded import Bounded
from workers.training.objectives.weighed import Weighed
from workers.training.run import Run

__all__ = ["standard"]


def standard(live: Live, x: Tensor, y: Tensor, at: Weighed, run: Run) -> tuple[Tensor, Bounded]:
    """(loss, logits as their own worst case)."""
    logits = live.logits(live.features(x))
    return F.cross_entropy(logits, y), Bounded(logits, logits)
