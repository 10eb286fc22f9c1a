"""What the objectives of the IBP family share: clean pass, boxes, regularisers, losses of gaps."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.kinds import BatchNorm
from workers.training.bounds.box import BoxPass, Interval, kinked, largest_gaps, pixel_box
from workers.training.config import TrainingConfig
from workers.training.objectives.bounded import Bounded, reference_of
from workers.training.objectives.scheduled_weights import ScheduledWeights
from workers.training.training_graph import TrainingGraph

__all__ = ["box_bound", "clean_logits", "gap_losses", "mixed", "option", "regularizers"]

_TINY = 1e-12


def option(config: TrainingConfig, name: str, default: float) -> float:
    """A number among the method's own options."""
    return float(config.options.get(name, default))


def clean_logits(graph: TrainingGraph, x: Tensor, at: ScheduledWeights) -> Tensor:
    """Logits of the clean samples, whose statistics batch norm takes for the rest of the step.

    Without a gradient where nothing depends on them: no clean loss, no batch norm.
    """
    normalized = any(isinstance(step.op, BatchNorm) for step in graph.steps)
    counted_only = at.robust and not normalized
    with torch.no_grad() if counted_only else nullcontext():
        return graph.logits(graph.features(x))


def gap_losses(gaps: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each sample for gaps f_j - f_y, [batch, classes] -> [batch]."""
    return F.cross_entropy(gaps, y, reduction="none")


def mixed(logits: Tensor, robust: Tensor, y: Tensor, at: ScheduledWeights) -> Tensor:
    """kappa CE(clean) + (1 - kappa) robust (Gowal et al. 2018, equation 14)."""
    if at.robust:
        return robust
    return at.kappa * F.cross_entropy(logits, y) + (1.0 - at.kappa) * robust


def box_bound(
    graph: TrainingGraph,
    x: Tensor,
    reference: Tensor | None,
    epsilon: float | Tensor,
    config: TrainingConfig,
) -> Bounded:
    """Worst logits over the box of radius epsilon, by interval bounds."""
    logits = graph.logits(graph.features(x))
    chosen = reference_of(logits, reference)
    gaps = largest_gaps(graph, BoxPass(graph).of(pixel_box(x, epsilon)), chosen)
    return Bounded.of_gaps(logits, chosen, gaps)


def regularizers(
    graph: TrainingGraph, passed: BoxPass | None, at: ScheduledWeights, config: TrainingConfig
) -> Tensor | float:
    """``l1`` |W|_1 of all convolutions and dense layers, and Shi's while epsilon grows."""
    added: Tensor | float = 0.0
    l1 = option(config, "l1", 0.0)
    if l1 > 0.0:
        added = added + l1 * sum(weight.abs().sum() for weight, _ in graph.weights.values())
    weight = option(config, "regularization", 0.0)
    last = config.epsilon * config.epsilon_schedule.at(1.0)
    if weight > 0.0 and passed is not None and last > 0.0:
        left = 1.0 - at.epsilon / last
        if isinstance(left, Tensor) or left > 0.0:
            added = added + weight * left * _tight_and_balanced(graph, passed, config)
    return added


def _tight_and_balanced(graph: TrainingGraph, passed: BoxPass, config: TrainingConfig) -> Tensor:
    """(L_tight + L_relu) / number of ReLUs (Shi et al. 2021, sections 4.2 and 4.3).

    L_tight: boxes are not to be wider before a ReLU than before the first weights, on average.
    L_relu: active and inactive neurons are to have like sums and squares of centres. Averages are
    those of the whole batch, of which this rank has a part.
    """
    tolerance = option(config, "regularization_tolerance", 0.5)
    total = graph.head_weight.new_zeros(())
    count = 0
    widths: Tensor | None = None
    for step in graph.steps:
        if widths is None and step.name in graph.weights:
            widths = graph.batch_mean(passed.boxes[step.sources[0]].half)
        if not kinked(step) or widths is None:
            continue
        count += 1
        before = passed.boxes[step.sources[0]]
        width = graph.batch_mean(before.half).clamp_min(_TINY)
        total = total + (tolerance - widths / width).relu() / tolerance
        for ratio in _balances(graph, before):
            total = total + (tolerance - ratio).relu() / tolerance
    return total / max(count, 1)


def _balances(graph: TrainingGraph, before: Interval) -> tuple[Tensor, Tensor]:
    """min(q, 1 / q) for q = active / inactive: of sums of centres, and of squared deviations."""
    centre = before.middle
    active, inactive = (before.lower > 0).to(centre), (before.upper < 0).to(centre)
    squares = (centre - graph.batch_mean(centre)).square()
    return (
        _ratio(graph.batch_mean(centre * active), graph.batch_mean(-centre * inactive)),
        _ratio(graph.batch_mean(squares * active), graph.batch_mean(squares * inactive)),
    )


def _ratio(first: Tensor, second: Tensor) -> Tensor:
    """The smaller by the larger of two numbers >= 0; 1 where there are neither."""
    first, second = first.clamp_min(_TINY), second.clamp_min(_TINY)
    return torch.minimum(first, second) / torch.maximum(first, second)
