"""Largest value of a linear function over ball and box: max { w.d : |d|_2 <= rho, lo <= d <= hi }.

Exact by duality: for ANY vector a,
    max <= rho |a|_2 + sum_i max((w_i - a_i) lo_i, (w_i - a_i) hi_i),
so the multiplier may come from any heuristic; only this last evaluation has to be right, and it is
done in float64 with its rounding added. a = w is the ball alone (LMT), a = 0 the box alone (IBP).
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.verification.numerics import lost_in_norm, lost_in_sums, min_normal, nonzero
from workers.verification.rounding import unit_roundoff

__all__ = ["ball_box_maximum", "dual_value", "primal_point", "quick_maximum"]

#: Clip-and-rescale rounds at most; 3-6 suffice as a rule, and stopping early is sound.
ROUNDS = 40
#: A round that raises the multiplier by less than this share is the last.
MIN_GROWTH = 1e-15


def primal_point(w: Tensor, lower: Tensor, upper: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """(t, mu): the maximiser t = clip(mu w, lower, upper) with |t| = rho, or the box's corner.

    w, lower, upper [n, h] float64, rho [n]. mu is infinite where the whole box lies in the ball.
    Clip and rescale (Lee et al. 2020, algorithm 1) raises mu until no coordinate leaves the box.
    """
    norm = w.norm(dim=1)
    mu = torch.where(norm > 0, rho / nonzero(norm), torch.zeros_like(rho))
    corner = torch.where(w > 0, upper, torch.where(w < 0, lower, torch.zeros_like(w)))
    inside = corner.norm(dim=1) <= rho
    mu = torch.where(inside, torch.full_like(mu, torch.inf), mu)
    for _ in range(ROUNDS):
        scaled = w * mu[:, None]
        clipped = (scaled > upper) | (scaled < lower)
        fixed = torch.where(clipped, corner, torch.zeros_like(w)).square().sum(1)
        free = torch.where(clipped, torch.zeros_like(w), w).square().sum(1)
        ratio = (rho.square() - fixed).clamp_min(0.0) / free
        raised = torch.where(free > 0, ratio.sqrt(), mu)
        grow = (raised > mu * (1.0 + MIN_GROWTH)) & ~inside
        if not bool(grow.any()):
            break
        mu = torch.where(grow, raised, mu)
    scaled = w * mu[:, None]
    t = torch.maximum(torch.minimum(scaled, upper), lower)
    return torch.where(inside[:, None], corner, t), mu


def dual_value(w: Tensor, a: Tensor, lower: Tensor, upper: Tensor, rho: Tensor) -> Tensor:
    """rho |a| + sum_i max((w_i - a_i) lower_i, (w_i - a_i) upper_i), [n], rounded up.

    Also covers w_i being off by one rounding (w = w_j - w_y computed in float64).
    """
    rest = w - a
    reach = torch.maximum(lower.abs(), upper.abs())
    ball = rho * (a.norm(dim=1) + lost_in_norm(w.shape[1], w.dtype))
    value = ball + torch.maximum(rest * lower, rest * upper).sum(1)
    size = ball + ((rest.abs() + a.abs() + w.abs()) * reach).sum(1)
    return value + size * ((w.shape[1] + 16) * unit_roundoff(w.dtype)) + lost_in_sums(w.dtype)


def quick_maximum(
    w: Tensor, lower: Tensor, upper: Tensor, rho: Tensor, reach_norm: Tensor, rounds: int
) -> tuple[Tensor, Tensor]:
    """A cheaper upper bound on the same maximum for many rows, and where it is attained.

    Returns ([n] float64, t [n, h]); computed in w's own dtype.

    For t = clip(mu w, lower, upper) with any mu > 0 the dual at a = t / mu is
    w.t + |t| (rho - |t|) / mu; ``rounds`` of clip and rescale choose mu. Needs lower <= 0 <= upper
    (so that no product is negative); reach_norm [n]: norm of the box's farthest corner.
    """
    unit = unit_roundoff(w.dtype)
    lost = lost_in_norm(w.shape[1], w.dtype)
    norm = torch.linalg.vector_norm(w, dim=1) + lost
    rho_t = rho.to(w.dtype)
    mu = rho_t / norm
    for _ in range(rounds):
        scaled = w * mu[:, None]
        t = torch.clamp(scaled, lower, upper)
        # Coordinates that hit the box: what is left of rho^2 belongs to the others. Products with
        # their signs, because choosing by a mask is many times slower.
        hit = scaled.sub_(t).sign_()
        fixed = torch.linalg.vector_norm(t.mul_(hit), dim=1).square()
        rest = norm.square() - torch.linalg.vector_norm(hit.mul_(w), dim=1).square()
        raised = ((rho_t.square() - fixed).clamp_min(0.0) / rest).sqrt()
        mu = torch.where((rest > 0) & (raised > mu) & torch.isfinite(raised), raised, mu)
    t = torch.clamp(w * mu[:, None], lower, upper)
    length = torch.linalg.vector_norm(t, dim=1).to(torch.float64)
    along = (w * t).sum(1).to(torch.float64)
    slope = length / mu.to(torch.float64)
    relative = (w.shape[1] + 32) * unit
    slack = relative * (along.abs() + slope * (rho + length))
    slack = slack + 16 * unit * norm.to(torch.float64) * reach_norm
    # What t itself, rounded from mu w, is off by adds to a corner's share of (w - t / mu).
    tiny = w.shape[1] * min_normal(w.dtype)
    off = (rho + 2 * length + lost) * lost + tiny * reach_norm
    slack = slack + 2 * off / mu.to(torch.float64) + lost_in_sums(w.dtype)
    value = along + slope * (rho - length) + slack
    ball = rho * norm.to(torch.float64) * (1.0 + relative)
    return torch.fmin(value, ball), t


def ball_box_maximum(w: Tensor, lower: Tensor, upper: Tensor, rho: Tensor) -> Tensor:
    """Upper bound on max { w.d : |d| <= rho, lower <= d <= upper }, exact up to rounding, [n].

    w, lower, upper [n, h] float64 (any signs), rho [n] >= 0, possibly infinite (the box alone).
    """
    box = dual_value(w, torch.zeros_like(w), lower, upper, torch.zeros_like(rho))
    finite = torch.isfinite(rho)
    if not bool(finite.any()):
        return box
    rho = torch.where(finite, rho, torch.zeros_like(rho))
    t, mu = primal_point(w, lower, upper, rho)
    scaled = w * mu[:, None]
    clipped = (scaled > upper) | (scaled < lower) | ~torch.isfinite(scaled)
    slope = torch.where(mu > 0, 1.0 / mu, torch.zeros_like(mu))[:, None]
    mixed = dual_value(w, torch.where(clipped, t * slope, w), lower, upper, rho)
    ball = dual_value(w, w, lower, upper, rho)
    best = torch.minimum(torch.minimum(mixed.nan_to_num(torch.inf), ball), box)
    return torch.where(finite, best, box)
