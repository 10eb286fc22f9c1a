"""Projected gradient descent inside a training step (Madry et al. 2018), repeatable from seed and
step, and the same for a sample on whichever device it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.training.bounds.box import Box
from workers.training.config import TrainingConfig
from workers.training.objectives.linf.boxes import option
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.training_graph import TrainingGraph

__all__ = ["ascended", "attacked_pixels"]

#: Purposes of the random numbers: one for each restart.
FIRST_PURPOSE = 0

#: (points [batch, *shape]) -> what is to grow, [batch].
Height = Callable[[Tensor], Tensor]


def ascended(
    height: Height,
    box: Box,
    starts: Callable[[int], Tensor],
    *,
    steps: int,
    restarts: int,
    step_size: float,
) -> Tensor:
    """The highest points that were found in the box, without gradient, in the shape of its ends.

    ``starts(restart)``: numbers in [0, 1) of that shape, where the search begins. Each of ``steps``
    goes ``step_size`` halves of the box's width along the gradient's sign and back into the box.
    """
    low, high = box.lower.detach(), box.upper.detach()
    width = high - low
    best, best_height = low, torch.full((len(low),), -torch.inf, device=low.device)
    for restart in range(restarts):
        points = low + starts(restart).to(low) * width
        for _ in range(steps):
            with torch.enable_grad():
                points = points.requires_grad_()
                (slope,) = torch.autograd.grad(height(points).sum(), points)
            with torch.no_grad():
                moved = torch.addcmul(points, slope.sign(), width, value=0.5 * step_size)
                points = torch.minimum(torch.maximum(moved, low), high)
        points = points.detach()
        if restarts == 1:
            return points
        with torch.no_grad():
            reached = height(points)
            better = reached > best_height
            best_height = torch.where(better, reached, best_height)
            best = torch.where(better.reshape(-1, *([1] * (low.dim() - 1))), points, best)
    return best


def attacked_pixels(
    graph: TrainingGraph,
    x: Tensor,
    y: Tensor,
    box: Box,
    at: ScheduledWeights,
    config: TrainingConfig,
) -> Tensor:
    """Points of the pixel box with a large cross-entropy, by ``attack_steps``,
    ``attack_restarts`` and ``attack_step_size`` of the method's options."""

    def loss(points: Tensor) -> Tensor:
        return F.cross_entropy(graph.logits(graph.features(points)), y, reduction="none")

    return ascended(
        loss,
        box,
        lambda restart: at.uniform(config, x, FIRST_PURPOSE + restart),
        steps=int(option(config, "attack_steps", 8)),
        restarts=int(option(config, "attack_restarts", 1)),
        step_size=option(config, "attack_step_size", 0.25),
    )
