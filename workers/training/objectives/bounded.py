"""What an objective starts from: logits, and how large the others may get within epsilon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.training.bounds.ball_and_box import Propagation, start
from workers.training.bounds.last_layer import ball_logits, worst_logits
from workers.training.bounds.local_norms import Local
from workers.training.config import Run
from workers.training.training_graph import Live

__all__ = ["Bound", "Bounded", "ball_and_box", "global_ball", "local_ball_and_box", "whole_network"]


@dataclass(frozen=True)
class Bounded:
    """logits [batch, classes]; worst [batch, classes]: the reference class's own logit, and upper
    estimates of all others' relative to it. sparsity: Local-Lip's loss, where it is counted."""

    logits: Tensor
    worst: Tensor
    sparsity: Tensor | None = None


#: (network, x [batch, *shape], reference class [batch] or None for the prediction, epsilon, run).
Bound = Callable[[Live, Tensor, Tensor | None, float | Tensor, Run], Bounded]


def _radius(epsilon: float | Tensor, x: Tensor, run: Run) -> float | Tensor:
    """epsilon as a Euclidean radius."""
    return epsilon * float(x[0].numel()) ** 0.5 if run.norm == "linf" else epsilon


def global_ball(
    live: Live, x: Tensor, reference: Tensor | None, epsilon: float | Tensor, run: Run
) -> Bounded:
    """f_j + epsilon Lip |w_j - w_r| (GloRo, Leino et al. 2021; EMMA, Hu et al. 2023)."""
    logits = live.logits(live.features(x))
    chosen = logits.argmax(1) if reference is None else reference
    radius = live.lipschitz() * _radius(epsilon, x, run)
    return Bounded(logits, ball_logits(logits, live.head_weight, radius, chosen))


def whole_network(
    live: Live, x: Tensor, reference: Tensor | None, epsilon: float | Tensor, run: Run
) -> Bounded:
    """f_j + sqrt(2) epsilon L with L of the whole network (LMT, Tsuzuku et al. 2018, eq. 5)."""
    logits = live.logits(live.features(x))
    chosen = logits.argmax(1) if reference is None else reference
    norm = torch.linalg.matrix_norm(live.head_weight, 2)
    added = 2.0**0.5 * _radius(epsilon, x, run) * live.lipschitz() * norm
    others = torch.ones_like(logits).scatter_(1, chosen[:, None], 0.0)
    return Bounded(logits, logits + added * others)


def ball_and_box(
    live: Live, x: Tensor, reference: Tensor | None, epsilon: float | Tensor, run: Run
) -> Bounded:
    """Worst logits over ball and box (BCP, Lee et al. 2020)."""
    return _bounded(live, x, reference, epsilon, run, Propagation(live))


def local_ball_and_box(
    live: Live, x: Tensor, reference: Tensor | None, epsilon: float | Tensor, run: Run
) -> Bounded:
    """The same with norms per sample (Local-Lip, Huang et al. 2021)."""
    margin = run.sparsity_margin if run.sparsity > 0.0 else None
    return _bounded(live, x, reference, epsilon, run, Local(live, sparsity_margin=margin))


def _bounded(
    live: Live,
    x: Tensor,
    reference: Tensor | None,
    epsilon: float | Tensor,
    run: Run,
    propagation: Propagation,
) -> Bounded:
    state = propagation.run(start(x, epsilon, run.norm))
    logits = live.logits(state.centre)
    chosen = logits.argmax(1) if reference is None else reference
    worst = worst_logits(logits, live.head_weight, state, chosen, run.rounds)
    sparsity = propagation.sparsity if isinstance(propagation, Local) else None
    return Bounded(logits, worst, sparsity)
