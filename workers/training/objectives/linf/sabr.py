"""Small boxes around adversarial examples (SABR; Mueller, Eckert, Fischer, Vechev 2023,
arXiv:2210.04871)."""

from __future__ import annotations

from torch import Tensor

from workers.training.bounds.box import Box, BoxPass, largest_gaps, pixel_box
from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bounded
from workers.training.objectives.linf.attack import attacked_pixels
from workers.training.objectives.linf.boxes import (
    clean_logits,
    gap_losses,
    mixed,
    option,
    regularizers,
)
from workers.training.objectives.linf.relaxed import relaxed_bound
from workers.training.objectives.objective import Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.objectives.standard import standard
from workers.training.training_graph import TrainingGraph

__all__ = ["OBJECTIVES", "sabr", "small_box"]


def small_box(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> Box:
    """A box of ``subselection_ratio`` times the radius, inside the allowed pixels, around the
    point of an attack moved there (section 4). With a ratio of 1 it is all of them."""
    allowed = pixel_box(x, at.epsilon)
    ratio = option(config, "subselection_ratio", 0.4)
    if ratio >= 1.0:
        return allowed
    points = attacked_pixels(graph, x, y, allowed, at, config)
    reach = ratio * allowed.half
    centre = points.maximum(allowed.lower + reach).minimum(allowed.upper - reach)
    return Box(centre - reach, centre + reach)


def sabr(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """IBP's loss on the small box; behind unstable ReLUs the upper ends may shrink."""
    if at.clean:
        return standard(graph, x, y, at, config)
    logits = clean_logits(graph, x, at)
    passed = BoxPass(graph, shrinkage=option(config, "relu_shrinkage", 1.0))
    gaps = largest_gaps(graph, passed.of(small_box(graph, x, y, at, config)), y)
    loss = mixed(logits, gap_losses(gaps, y).mean(), y, at)
    loss = loss + regularizers(graph, passed, at, config)
    return loss, Bounded(logits, logits.gather(1, y[:, None]) + gaps)


OBJECTIVES = {"sabr": Objective(sabr, relaxed_bound)}
