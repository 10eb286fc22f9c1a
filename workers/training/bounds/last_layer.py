"""The last layer: worst logits over ball and box, for the pairs (label, j) only.

The papers' code solves all C x C pairs and differentiates through the solver. Here the maximiser is
found without gradient and the envelope theorem gives the rest (the dual of ``box_ball``):
d value / d w = t, d / d rho = |a|, d / d lower, upper = w - a on the active face, with a = t / mu.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.verification.enclosure import Enclosure
from workers.verification.forward.box_ball import quick_maximum

__all__ = ["ball_logits", "pair_differences", "worst_logits"]

_TINY = 1e-12


def pair_differences(weight: Tensor, reference: Tensor) -> Tensor:
    """w_j - w_r for every sample's reference class r: [batch, classes, features]."""
    return weight[None] - weight[reference][:, None]


def ball_logits(logits: Tensor, weight: Tensor, radius: Tensor, reference: Tensor) -> Tensor:
    """f_j + radius |w_j - w_r| for j != r, f_r itself: [batch, classes]; radius scalar or [batch].

    One Gram matrix instead of [batch, classes, features] differences. Its diagonal is computed
    apart: Inductor of torch 2.13 gets the gradient of ``diagonal`` wrong here (11 %, on a CPU).
    """
    gram = weight @ weight.T
    square = weight.square().sum(1)
    distance = square[None] + square[:, None] - 2.0 * gram
    norms = distance.clamp_min(0.0).add(_TINY).sqrt()[reference]
    shaped = radius if radius.dim() == 0 else radius[:, None].to(norms.dtype)
    others = torch.ones_like(logits).scatter_(1, reference[:, None], 0.0)
    return logits + shaped * norms * others


def worst_logits(
    logits: Tensor, weight: Tensor, state: Enclosure, labels: Tensor, rounds: int
) -> Tensor:
    """f_j + max { (w_j - w_y).d : |d| <= rho, lower <= z + d <= upper }; f_y for the label.

    logits [batch, classes]; state: enclosure of what the last layer takes, [batch, features].
    ``rounds`` of clip and rescale; every number of them gives an upper bound.
    """
    assert state.lower is not None
    assert state.upper is not None
    batch, classes = logits.shape
    # Not by a mask: a GPU would wait for its count, and no graph could be captured.
    rows = torch.arange(classes - 1, device=logits.device).expand(batch, -1)
    others = rows + (rows >= labels[:, None])
    w = weight[others] - weight[labels][:, None]
    low = (state.lower - state.centre).clamp_max(0.0)
    high = (state.upper - state.centre).clamp_min(0.0)
    shift = _maximum(w, low, high, state.radius.to(w.dtype), rounds)
    return logits.scatter_add(1, others, shift)


def _maximum(w: Tensor, low: Tensor, high: Tensor, rho: Tensor, rounds: int) -> Tensor:
    """The maxima [batch, pairs], with the envelope's gradients."""
    _, pairs, features = w.shape
    with torch.no_grad():
        flat = w.reshape(-1, features)
        lows = low[:, None].expand_as(w).reshape(-1, features)
        highs = high[:, None].expand_as(w).reshape(-1, features)
        radii = rho.repeat_interleave(pairs).to(torch.float64)
        corner = torch.maximum(highs, -lows).norm(dim=1).to(torch.float64)
        _, t = quick_maximum(flat, lows, highs, radii, corner, rounds)
        # mu: what t / w is where nothing was clipped, and at most that elsewhere.
        ratio = torch.where(flat.abs() > _TINY, t / flat, torch.zeros_like(t)).amax(1)
        mu = ratio.clamp_min(_TINY)
        a = t / mu[:, None]
        # A box inside the ball: its corner is the maximiser, and the ball's face is not touched.
        best = torch.where(flat > 0, highs, torch.where(flat < 0, lows, torch.zeros_like(flat)))
        inside = (best.norm(dim=1) <= radii)[:, None]
        t, a = torch.where(inside, best, t), torch.where(inside, torch.zeros_like(a), a)
        t, a = t.reshape(w.shape), a.reshape(w.shape)
        length, slope = t.norm(dim=2), a.norm(dim=2)
        rest = w - a
        ball = rho[:, None] * w.norm(dim=2)
        value = (w * t).sum(2) + slope * (rho[:, None] - length)
        better = value < ball
    faces = rest.clamp_min(0.0) * high[:, None] + rest.clamp_max(0.0) * low[:, None]
    mixed = (w * t).sum(2) + slope * rho[:, None]
    mixed = mixed + (faces - faces.detach()).sum(2) - (slope * length)
    return torch.where(better, mixed, rho[:, None] * (w.square().sum(2) + _TINY).sqrt())
