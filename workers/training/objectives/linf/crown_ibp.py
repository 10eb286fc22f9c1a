"""CROWN-IBP (Zhang, Chen, Xiao, Gowal, Stanforth, Li, Boning, Hsieh 2020, arXiv:1906.06316) with
the loss fusion of Xu et al. 2020 (arXiv:2002.12920): one row goes back instead of one per class."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.training.bounds.box import BoxPass, largest_gaps, pixel_box, smallest_gaps
from workers.training.bounds.last_layer import pair_differences
from workers.training.bounds.relaxation import least_values
from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bounded
from workers.training.objectives.linf.boxes import clean_logits, mixed, option, regularizers
from workers.training.objectives.linf.relaxed import relaxed_bound
from workers.training.objectives.objective import Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.objectives.standard import standard
from workers.training.training_graph import TrainingGraph

__all__ = ["OBJECTIVES", "crown_ibp", "fused_loss"]

#: Chords of narrower ranges are tangents.
LEAST_WIDTH = 1e-6
_TINY = 1e-30


def fused_loss(
    graph: TrainingGraph,
    passed: BoxPass,
    least: Tensor,
    most: Tensor,
    y: Tensor,
    beta: float | Tensor,
) -> Tensor:
    """An upper bound of log sum_j exp(g_j), g_j = f_j - f_y, for each sample: [batch].

    Over least <= g_j <= most (interval bounds, [batch, classes]) exp lies below its chord, which is
    s_j g_j + t_j; s . g is bounded by one backward pass. Its share is 1 - ``beta``, the rest is
    interval bounds: with beta = 1 the loss is IBP's. All is divided by exp of the largest ``most``.
    """
    scale = most.detach().amax(1, keepdim=True)
    width = (most - least).clamp_min(LEAST_WIDTH)
    top = (most - scale).exp()
    slope = top * -torch.expm1(-width) / width
    label = torch.zeros_like(slope).scatter_(1, y[:, None], 1.0)
    slope = slope * (1.0 - label)
    # For the label g_y = 0: its summand is exp(-scale).
    constants = top - slope * most
    rows = -torch.bmm(slope.unsqueeze(1), pair_differences(graph.head_weight, y))
    bias = graph.logits(torch.zeros_like(passed.boxes[len(graph.steps)].lower[:1]))
    shifts = bias - bias.expand(len(y), -1).gather(1, y[:, None])
    relaxed = -least_values(graph, passed.boxes, rows).squeeze(1) + (slope * shifts).sum(1)
    plain = (slope * most).sum(1)
    total = constants.sum(1) + beta * plain + (1.0 - beta) * relaxed
    result: Tensor = total.clamp_min(_TINY).log() + scale.squeeze(1)
    return result


def crown_ibp(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """kappa CE(f, y) + (1 - kappa) of the fused loss. ``beta`` is the share of interval bounds at
    the last epsilon; it grows with epsilon (section 3)."""
    if at.clean:
        return standard(graph, x, y, at, config)
    logits = clean_logits(graph, x, at)
    passed = BoxPass(graph)
    features = passed.of(pixel_box(x, at.epsilon))
    least, most = smallest_gaps(graph, features, y), largest_gaps(graph, features, y)
    last = config.epsilon * config.epsilon_schedule.at(1.0)
    beta = option(config, "beta", 0.0) * (at.epsilon / last if last > 0.0 else 1.0)
    loss = mixed(logits, fused_loss(graph, passed, least, most, y, beta).mean(), y, at)
    loss = loss + regularizers(graph, passed, at, config)
    return loss, Bounded(logits, logits.gather(1, y[:, None]) + most)


OBJECTIVES = {"crown-ibp": Objective(crown_ibp, relaxed_bound)}
