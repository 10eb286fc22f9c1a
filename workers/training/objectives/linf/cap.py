"""CAP: cross-entropy of the dual's bounds over the convex outer polytope (Wong and Kolter 2018,
arXiv:1711.00851), with random projections (Wong, Schmidt, Metzen, Kolter 2018, arXiv:1805.12514).

Layer by layer the polytope is the zonotope of ``workers.training.bounds.latent``: the same lines
above and below each unstable ReLU. Its boxes are exact, or estimated by projections; the last
margins come from one backward pass over them (equation 8), which with projections is no bound.
For linf the box is cut with [0, 1]; the l2 ball is not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.training.bounds.box import Box, pixel_box
from workers.training.bounds.last_layer import pair_differences
from workers.training.bounds.latent import Widths, activations_of, draw_cauchy, draw_normal
from workers.training.bounds.relaxation import least_values
from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bounded, reference_of
from workers.training.objectives.linf.boxes import clean_logits, gap_losses, mixed, option
from workers.training.objectives.objective import Objective
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.objectives.standard import standard
from workers.training.training_graph import TrainingGraph

__all__ = ["OBJECTIVES", "cap", "dual_gaps"]

#: What random numbers are drawn for, among a step's; each set of terms adds its own number.
PROJECTIONS = 3
#: Of validation samples: how many at a time, and projections at most.
VALIDATION_ROWS, VALIDATION_PROJECTIONS = 50, 10


def dual_gaps(
    graph: TrainingGraph,
    x: Tensor,
    y: Tensor,
    epsilon: float | Tensor,
    at: ScheduledWeights,
    config: TrainingConfig,
    projections: int,
) -> Tensor:
    """-J of f_y - f_j for every class: upper bounds of f_j - f_y, [batch, classes], 0 for j = y.

    Sets of more terms than ``projections`` are projected; with 0 none is, and all is a bound.
    """
    ball = config.norm == "l2"
    box = Box(x - epsilon, x + epsilon) if ball else pixel_box(x, epsilon)

    def draw(number: int, shape: tuple[int, ...]) -> Tensor:
        draws = draw_normal if ball and number == 0 else draw_cauchy
        return draws(at.generator(config, PROJECTIONS + number), x, shape)

    exact = projections if projections > 0 else math.inf
    widths = Widths(graph, box, draw, projections, exact=exact, ball=ball)
    boxes = {0: box}
    places = set(activations_of(graph, "CAP", sums=True))
    for index, step in enumerate(graph.steps):
        if index in places:
            lines = widths.until(index)
            boxes[step.sources[0]] = Box(lines.lower, lines.upper)
            widths.through(lines)
        else:
            widths.walk(index + 1)
        # Of other values only the shape counts.
        boxes[index + 1] = Box(widths.centre, widths.centre)
    rows = -pair_differences(graph.head_weight, y)
    radius = epsilon if ball else None
    least = least_values(graph, boxes, rows, rule="cap", radius=radius)
    bias = graph.logits(torch.zeros_like(widths.centre[:1]))
    return bias - bias.expand(len(x), -1).gather(1, y[:, None]) - least


def cap(
    graph: TrainingGraph, x: Tensor, y: Tensor, at: ScheduledWeights, config: TrainingConfig
) -> tuple[Tensor, Bounded]:
    """kappa CE(f, y) + (1 - kappa) CE(-J, y); the published runs have kappa = 0."""
    if at.clean:
        return standard(graph, x, y, at, config)
    logits = clean_logits(graph, x, at)
    gaps = dual_gaps(graph, x, y, at.epsilon, at, config, int(option(config, "projections", 50)))
    loss = mixed(logits, gap_losses(gaps, y).mean(), y, at)
    return loss, Bounded.of_gaps(logits, y, gaps)


def estimated_bound(
    graph: TrainingGraph,
    x: Tensor,
    reference: Tensor | None,
    epsilon: float | Tensor,
    config: TrainingConfig,
) -> Bounded:
    """The dual's worst logits by few projections: an estimate."""
    logits = graph.logits(graph.features(x))
    chosen = reference_of(logits, reference)
    at = ScheduledWeights.of(0.0, 0.0, 0.0)
    asked = int(option(config, "projections", 50))
    count = min(asked, VALIDATION_PROJECTIONS) if asked > 0 else VALIDATION_PROJECTIONS
    gaps = [
        dual_gaps(graph, rows, labels, epsilon, at, config, count)
        for rows, labels in zip(
            x.split(VALIDATION_ROWS), chosen.split(VALIDATION_ROWS), strict=True
        )
    ]
    return Bounded.of_gaps(logits, chosen, torch.cat(gaps))


def chains(graph: TrainingGraph, config: TrainingConfig) -> int:
    """The run is one stage. Raises TrainingError for a network that CAP does not train."""
    activations_of(graph, "CAP", sums=True)
    return 1


OBJECTIVES = {"cap": Objective(cap, estimated_bound, chains)}
