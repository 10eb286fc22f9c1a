"""Bounds for the first layers, an attack in their box for the rest: TAPS, and STAPS, which begins
with SABR's small box (Mao, Mueller, Fischer, Vechev 2023, arXiv:2305.04574)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workers.training.bounds.box import Box, BoxPass, Interval, kinked, largest_gaps, pixel_box
from workers.training.config import TrainingConfig, TrainingError
from workers.training.objectives.bounded import Bounded
from workers.training.objectives.linf.attack import ascended
from workers.training.objectives.linf.boxes import (
    clean_logits,
    gap_losses,
    mixed,
    option,
    regularizers,
)
from workers.training.objectives.linf.relaxed import relaxed_bound
from workers.training.objectives.linf.sabr import small_box
from workers.training.objectives.objective import Loss, Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.objectives.standard import standard
from workers.training.training_graph import TrainingGraph

__all__ = ["OBJECTIVES", "cut_of", "linked", "scaled"]

#: Purpose of the random numbers of the latent attack's first restart: those before it are the
#: attack's in the pixels.
LATENT_PURPOSE = 64


def cut_of(graph: TrainingGraph, attacked: int) -> int:
    """The value before the last ``attacked`` activations and their layers: what the attack moves.

    0, the pixels, where there are no more activations than that. Raises TrainingError where later
    layers read an earlier value too.
    """
    places = [index + 1 for index, step in enumerate(graph.steps) if kinked(step)]
    cut = places[-attacked - 1] if len(places) > attacked else 0
    if any(source < cut for step in graph.steps[cut:] for source in step.sources):
        raise TrainingError(
            "unsupported_architecture",
            f"a layer before the last {attacked} activations is read behind them: the network "
            "cannot be cut there",
            hint='another "attacked_activations" in the recipe\'s options',
            field="recipe.options.attacked_activations",
        )
    return cut


def _logits_from(graph: TrainingGraph, cut: int, latent: Tensor) -> Tensor:
    """[batch, classes] from value ``cut``."""
    values = {cut: latent}
    for index, step in enumerate(graph.steps[cut:], cut):
        values[index + 1] = graph.run(step, *(values[source] for source in step.sources))
    return graph.logits(values[len(graph.steps)])


def linked(points: Tensor, box: Interval, share: float) -> Tensor:
    """``points`` with a gradient to the ends of the box that they lie in (section 3.2).

    d p / d upper rises from 0 to 1 over the last ``share`` of the box below its upper end, and
    d p / d lower likewise; where the box is a point, both are a half.
    """
    lower, upper = box.lower.detach(), box.upper.detach()
    near = share * (upper - lower)
    wide = near > 0
    near = torch.where(wide, near, 1.0)
    up = torch.where(wide, (1.0 - (upper - points) / near).clamp(0.0, 1.0), 0.5)
    down = torch.where(wide, (1.0 - (points - lower) / near).clamp(0.0, 1.0), 0.5)
    return points + up * (box.upper - upper) + down * (box.lower - lower)


def scaled(loss: Tensor, weight: float) -> Tensor:
    """``loss`` with ``weight`` times its gradient."""
    return weight * loss - (weight - 1.0) * loss.detach()


def _attacked_gaps(
    graph: TrainingGraph,
    cut: int,
    box: Interval,
    y: Tensor,
    at: ScheduledWeights,
    config: TrainingConfig,
) -> Tensor:
    """f_j - f_y at the worst point of value ``cut``'s box that was found for each j, [batch,
    classes], 0 for j = y. Each class has an attack of its own."""
    batch, classes = len(y), len(graph.head_weight)
    rows = torch.arange(classes - 1, device=y.device).expand(batch, -1)
    others = rows + (rows >= y[:, None])

    def gaps(points: Tensor) -> Tensor:
        logits = _logits_from(graph, cut, points).reshape(batch, classes - 1, classes)
        other = logits.gather(2, others[:, :, None]).squeeze(2)
        label = logits.gather(2, y[:, None, None].expand(-1, classes - 1, 1)).squeeze(2)
        return other - label

    def repeated(ends: Tensor) -> Tensor:
        return ends.repeat_interleave(classes - 1, 0)

    each = Box(repeated(box.lower), repeated(box.upper))
    points = ascended(
        lambda points: gaps(points).flatten(),
        each,
        lambda restart: repeated(at.uniform(config, box.lower, LATENT_PURPOSE + restart)),
        steps=int(option(config, "attack_steps", 8)),
        restarts=int(option(config, "attack_restarts", 1)),
        step_size=option(config, "attack_step_size", 0.25),
    )
    found = gaps(linked(points, each, option(config, "linked_share", 0.5)))
    return torch.zeros(batch, classes, device=y.device, dtype=found.dtype).scatter(1, others, found)


#: (network, x, y, schedules' values, run) -> the pixels that are bounded.
Start = Callable[[TrainingGraph, Tensor, Tensor, ScheduledWeights, TrainingConfig], Box]


def _objective(start: Start) -> Loss:
    """CE(attack in the latent box) CE(IBP), sample by sample; ``gradient_weight`` scales the
    gradient of the first factor."""

    def loss(
        graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
    ) -> tuple[Tensor, Bounded]:
        if at.clean:
            return standard(graph, x, y, at, config)
        logits = clean_logits(graph, x, at)
        cut = cut_of(graph, int(option(config, "attacked_activations", 1)))
        passed = BoxPass(graph, shrinkage=option(config, "relu_shrinkage", 1.0))
        bounded = largest_gaps(graph, passed.of(start(graph, x, y, at, config)), y)
        attacked = _attacked_gaps(graph, cut, passed.boxes[cut], y, at, config)
        weight = option(config, "gradient_weight", 4.0)
        robust = scaled(gap_losses(attacked, y), weight) * gap_losses(bounded, y)
        total = mixed(logits, robust.mean(), y, at) + regularizers(graph, passed, at, config)
        return total, Bounded(logits, logits.gather(1, y[:, None]) + bounded)

    return loss


def _all_pixels(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> Box:
    return pixel_box(x, at.epsilon)


OBJECTIVES = {
    "taps": Objective(_objective(_all_pixels), relaxed_bound),
    "staps": Objective(_objective(small_box), relaxed_bound),
}
