"""Interval bound propagation (Gowal et al. 2018, arXiv:1810.12715), with the regularisers of Shi,
Wang, Zhang, Yi, Hsieh 2021 (arXiv:2103.17268)."""

from __future__ import annotations

from torch import Tensor

from workers.training.bounds.box import BoxPass, largest_gaps, pixel_box
from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bounded
from workers.training.objectives.linf.boxes import (
    box_bound,
    clean_logits,
    gap_losses,
    mixed,
    regularizers,
)
from workers.training.objectives.objective import Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.objectives.standard import standard
from workers.training.training_graph import TrainingGraph

__all__ = ["OBJECTIVES", "ibp"]


def ibp(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """kappa CE(f, y) + (1 - kappa) CE(worst, y), worst over the box (equation 14)."""
    if at.clean:
        return standard(graph, x, y, at, config)
    logits = clean_logits(graph, x, at)
    passed = BoxPass(graph)
    gaps = largest_gaps(graph, passed.of(pixel_box(x, at.epsilon)), y)
    loss = mixed(logits, gap_losses(gaps, y).mean(), y, at)
    loss = loss + regularizers(graph, passed, at, config)
    return loss, Bounded(logits, logits.gather(1, y[:, None]) + gaps)


OBJECTIVES = {"ibp": Objective(ibp, box_bound)}
