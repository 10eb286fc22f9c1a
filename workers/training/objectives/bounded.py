"""The input of an objective: logits, and upper estimates of the other logits within epsilon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.training.bounds.ball_and_box import TrainingPass, start
from workers.training.bounds.last_layer import ball_logits, worst_logits
from workers.training.bounds.local_norms import LocalTrainingPass
from workers.training.config import TrainingConfig
from workers.training.training_graph import TrainingGraph

__all__ = ["Bound", "Bounded", "ball_and_box", "global_ball", "l2_radius", "local_ball_and_box"]
__all__ += ["reference_of", "whole_network"]


@dataclass(frozen=True)
class Bounded:
    """logits [batch, classes]; worst [batch, classes]: the reference class's own logit, and upper
    estimates of all others' relative to it. sparsity: Local-Lip's loss, where it is counted."""

    logits: Tensor
    worst: Tensor
    sparsity: Tensor | None = None

    @classmethod
    def of_gaps(cls, logits: Tensor, reference: Tensor, gaps: Tensor) -> Bounded:
        """From upper estimates of f_j - f_reference, [batch, classes]."""
        return cls(logits, logits.gather(1, reference[:, None]) + gaps)


#: (network, x [batch, *shape], reference class [batch] or None for the prediction, epsilon, run).
Bound = Callable[[TrainingGraph, Tensor, Tensor | None, float | Tensor, TrainingConfig], Bounded]


def reference_of(logits: Tensor, named: Tensor | None) -> Tensor:
    """The class that all others are compared with, [batch]: the prediction where none is named."""
    return logits.argmax(1) if named is None else named


def l2_radius(epsilon: float | Tensor, x: Tensor, config: TrainingConfig) -> float | Tensor:
    """epsilon as a Euclidean radius."""
    return epsilon * float(x[0].numel()) ** 0.5 if config.norm == "linf" else epsilon


def global_ball(
    graph: TrainingGraph,
    x: Tensor,
    reference: Tensor | None,
    epsilon: float | Tensor,
    config: TrainingConfig,
) -> Bounded:
    """f_j + epsilon Lip |w_j - w_r| (GloRo, Leino et al. 2021; EMMA, Hu et al. 2023)."""
    logits = graph.logits(graph.features(x))
    chosen = reference_of(logits, reference)
    radius = graph.lipschitz() * l2_radius(epsilon, x, config)
    return Bounded(logits, ball_logits(logits, graph.head_weight, radius, chosen))


def whole_network(
    graph: TrainingGraph,
    x: Tensor,
    reference: Tensor | None,
    epsilon: float | Tensor,
    config: TrainingConfig,
) -> Bounded:
    """f_j + sqrt(2) epsilon L with L of the whole network (LMT, Tsuzuku et al. 2018, eq. 5)."""
    logits = graph.logits(graph.features(x))
    chosen = reference_of(logits, reference)
    norm = torch.linalg.matrix_norm(graph.head_weight, 2)
    added = 2.0**0.5 * l2_radius(epsilon, x, config) * graph.lipschitz() * norm
    others = torch.ones_like(logits).scatter_(1, chosen[:, None], 0.0)
    return Bounded(logits, logits + added * others)


def ball_and_box(
    graph: TrainingGraph,
    x: Tensor,
    reference: Tensor | None,
    epsilon: float | Tensor,
    config: TrainingConfig,
) -> Bounded:
    """Worst logits over ball and box (BCP, Lee et al. 2020)."""
    return _bounded(graph, x, reference, epsilon, config, TrainingPass(graph))


def local_ball_and_box(
    graph: TrainingGraph,
    x: Tensor,
    reference: Tensor | None,
    epsilon: float | Tensor,
    config: TrainingConfig,
) -> Bounded:
    """The same with norms per sample (Local-Lip, Huang et al. 2021)."""
    margin = config.sparsity_margin if config.sparsity > 0.0 else None
    return _bounded(
        graph, x, reference, epsilon, config, LocalTrainingPass(graph, sparsity_margin=margin)
    )


def _bounded(
    graph: TrainingGraph,
    x: Tensor,
    reference: Tensor | None,
    epsilon: float | Tensor,
    config: TrainingConfig,
    propagation: TrainingPass,
) -> Bounded:
    state = propagation.run(start(x, epsilon, config.norm))
    logits = graph.logits(state.centre)
    chosen = reference_of(logits, reference)
    worst = worst_logits(logits, graph.head_weight, state, chosen, config.rounds)
    sparsity = propagation.sparsity if isinstance(propagation, LocalTrainingPass) else None
    return Bounded(logits, worst, sparsity)
