"""Cross-entropy with certificate regularisation for 1-Lipschitz networks behind unit rows (Singla,
Singla, Feizi 2022, arXiv:2108.04062; layers: Singla and Feizi 2021, 2022)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bounded, global_ball
from workers.training.objectives.lipschitz.emma import just_bearable
from workers.training.objectives.objective import Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.training_graph import TrainingGraph

__all__ = ["LOSSES", "OBJECTIVES", "SHIFTS", "logit_annealing", "soc"]

#: Of logit annealing (Lai et al. 2025, arXiv:2505.15174): temperature, offset of the label's logit
#: and exponent, the same for all data sets.
TEMPERATURE, OFFSET, EXPONENT = 0.75, 2.0, 5.0


def logit_annealing(logits: Tensor, y: Tensor) -> Tensor:
    """T (1 - p)^beta (-log p), p the label's share of softmax((f - xi e_y) / T): a sample whose
    margin is large enough pulls no more, so that a small network spends itself on the others."""
    offset = torch.zeros_like(logits).scatter_(1, y[:, None], OFFSET)
    log_p = F.log_softmax((logits - offset) / TEMPERATURE, dim=1).gather(1, y[:, None])
    return -(TEMPERATURE * (1.0 - log_p.exp()) ** EXPONENT * log_p).mean()


def _nothing(found: Bounded, y: Tensor, config: TrainingConfig) -> Tensor:
    return torch.zeros_like(found.logits)


def _emma(found: Bounded, y: Tensor, config: TrainingConfig) -> Tensor:
    return just_bearable(found, y, config.least_share)


#: Losses of logits [batch, classes] and labels, by the option ``loss``.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": F.cross_entropy,
    "logit-annealing": logit_annealing,
}
#: What is added to the logits first, by the option ``shift``.
SHIFTS: dict[str, Callable[[Bounded, Tensor, TrainingConfig], Tensor]] = {
    "none": _nothing,
    "emma": _emma,
}


def soc(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """CE - gamma mean relu(R), R = min_j (f_y - f_j) / (Lip |w_y - w_j|): the certified radius.

    Wrong samples have no radius, and of the others the gradient is the same for every size of it.
    """
    options = config.options
    unit = global_ball(graph, x, y, 1.0, config)
    slopes = unit.worst - unit.logits
    found = Bounded(unit.logits, unit.logits + at.epsilon * slopes)
    added = SHIFTS[options.get("shift", "none")](found, y, config)
    loss = LOSSES[options.get("loss", "cross-entropy")](found.logits + added, y)
    gamma = float(options.get("gamma", 0.1))
    if gamma > 0.0:
        margins = found.logits.gather(1, y[:, None]) - found.logits
        radii = (margins / slopes.clamp_min(1e-9)).scatter(1, y[:, None], torch.inf)
        loss = loss - gamma * radii.amin(1).relu().mean()
    return loss, found


OBJECTIVES = {"soc": Objective(soc, global_ball)}
