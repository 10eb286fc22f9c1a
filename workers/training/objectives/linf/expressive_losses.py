"""Between an attack and interval bounds: MTL-IBP, CC-IBP, Exp-IBP (De Palma, Bunel, Dvijotham,
Kumar, Stanforth, Lomuscio 2024, arXiv:2305.13991). ``alpha`` is the share of the bounds."""

from __future__ import annotations

from collections.abc import Callable

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
from workers.training.objectives.objective import Loss, Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.objectives.standard import standard
from workers.training.training_graph import TrainingGraph

__all__ = ["OBJECTIVES", "cc_ibp", "exp_ibp", "mtl_ibp"]

#: Losses below this have no logarithm that is any use.
LEAST_LOSS = 1e-12

#: (gaps of the box, gaps under attack, labels, alpha) -> the loss of each sample.
Joined = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def mtl_ibp(bounded: Tensor, attacked: Tensor, y: Tensor, alpha: float) -> Tensor:
    """alpha CE(box) + (1 - alpha) CE(attack) (equation 8)."""
    return alpha * gap_losses(bounded, y) + (1.0 - alpha) * gap_losses(attacked, y)


def cc_ibp(bounded: Tensor, attacked: Tensor, y: Tensor, alpha: float) -> Tensor:
    """CE(alpha box + (1 - alpha) attack): gaps are combined (equation 7)."""
    return gap_losses(alpha * bounded + (1.0 - alpha) * attacked, y)


def exp_ibp(bounded: Tensor, attacked: Tensor, y: Tensor, alpha: float) -> Tensor:
    """CE(box)^alpha CE(attack)^(1 - alpha) (equation 9)."""
    box = gap_losses(bounded, y).clamp_min(LEAST_LOSS).log()
    point = gap_losses(attacked, y).clamp_min(LEAST_LOSS).log()
    result: Tensor = (alpha * box + (1.0 - alpha) * point).exp()
    return result


def _objective(joined: Joined) -> Loss:
    """The attack may look farther than the box, ``attack_scale`` times epsilon, and its points are
    not cut with the box, only with [0, 1]."""

    def loss(
        graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
    ) -> tuple[Tensor, Bounded]:
        if at.clean:
            return standard(graph, x, y, at, config)
        logits = clean_logits(graph, x, at)
        reach: Box = pixel_box(x, option(config, "attack_scale", 1.0) * at.epsilon)
        points = attacked_pixels(graph, x, y, reach, at, config)
        under_attack = graph.logits(graph.features(points))
        attacked = under_attack - under_attack.gather(1, y[:, None])
        passed = BoxPass(graph)
        bounded = largest_gaps(graph, passed.of(pixel_box(x, at.epsilon)), y)
        robust = joined(bounded, attacked, y, option(config, "alpha", 0.5)).mean()
        total = mixed(logits, robust, y, at) + regularizers(graph, passed, at, config)
        return total, Bounded(logits, logits.gather(1, y[:, None]) + bounded)

    return loss


OBJECTIVES = {
    "mtl-ibp": Objective(_objective(mtl_ibp), relaxed_bound),
    "cc-ibp": Objective(_objective(cc_ibp), relaxed_bound),
    "exp-ibp": Objective(_objective(exp_ibp), relaxed_bound),
}
