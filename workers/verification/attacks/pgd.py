"""Counterexamples: projected gradient descent (PGD, Madry et al. 2018), the upper bracket.

A point counts only after the DEPLOYED network has answered wrongly on it and its distance has been
checked in float64; the gradients come from our own float32 graph and are only a guide.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.network import Network
from workers.verification.attacks.replay import Deployed, breaks
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.input_range import Clip, range_of
from workers.verification.numerics import nonzero
from workers.verification.results import AttackSettings
from workers.verification.rounding import unit_roundoff

__all__ = ["attack", "audit_selection", "descend", "project"]

#: A point is drawn back this share inside the ball, so that its float32 form is in it, too.
INSIDE = 1e-6


def attack(
    network: Network,
    deployed: Deployed,
    x: Tensor,
    labels: Tensor,
    indices: NDArray[np.int64],
    epsilon: Tensor,
    *,
    norm: str,
    clip: Clip,
    settings: AttackSettings,
    gap: float = 0.0,
    clock: Clock = UNLIMITED,
) -> tuple[Tensor, Tensor]:
    """(broken [batch] bool, points [batch, *shape] float32) for balls of epsilon [batch].

    x [batch, *shape] float32; indices: positions in the data set, which seed the random starts, so
    that the answer depends neither on the batch nor on the shard. Starts: x itself, then random.
    A point breaks its sample where the label's deployed logit does not lead by more than ``gap``.
    Once the time is over, the best points met so far are tried, and that is all.
    """
    broken = torch.zeros(x.shape[0], dtype=torch.bool)
    points = x.clone()
    device = next(iter(network.state_dict().values()), x).device
    for restart in range(max(1, settings.restarts)):
        rows = (~broken).nonzero().flatten()
        if not rows.numel() or (restart and clock.over()):
            break
        noise = _noise(x[rows], indices[rows.numpy()], settings.seed, restart)
        start = x[rows] + noise * _shaped(epsilon[rows], x)
        candidates = descend(
            network,
            start.to(device),
            x[rows].to(device),
            labels[rows].to(device),
            epsilon[rows].to(device),
            norm=norm,
            clip=clip,
            steps=settings.steps,
            clock=clock,
        ).cpu()
        wrong = breaks(
            deployed,
            candidates,
            x[rows],
            labels[rows],
            epsilon[rows],
            norm=norm,
            clip=clip,
            gap=gap,
        )
        points[rows[wrong]] = candidates[wrong]
        broken[rows[wrong]] = True
    return broken, points


def _noise(x: Tensor, indices: NDArray[np.int64], seed: int, restart: int) -> Tensor:
    """Direction of the random start, Gaussian, one stream per (seed, sample, restart)."""
    if restart == 0:
        return torch.zeros_like(x)
    rows = [
        np.random.Generator(
            np.random.Philox(key=[(seed & (2**63 - 1)), int(index) * 65536 + restart])
        ).standard_normal(x[0].numel(), dtype=np.float32)
        for index in indices
    ]
    return torch.from_numpy(np.stack(rows)).reshape(x.shape)


def descend(
    logits_of: Callable[[Tensor], Tensor],
    start: Tensor,
    x: Tensor,
    labels: Tensor,
    epsilon: Tensor,
    *,
    norm: str,
    clip: Clip,
    steps: int,
    clock: Clock,
) -> Tensor:
    """The points with the least margin f_y - max_j f_j met on the way from ``start``, inside the
    region: [batch, *shape], as x and start. logits_of: [batch, *shape] -> [batch, classes]."""
    point = project(start, x, epsilon, norm=norm, clip=clip)
    best = point.clone()
    least = torch.full((x.shape[0],), torch.inf, device=x.device, dtype=torch.float64)
    for step in range(steps + 1):
        point = point.detach().requires_grad_(True)
        with torch.enable_grad():
            margin = _margin(logits_of(point), labels).double()
            (gradient,) = torch.autograd.grad(margin.sum(), point)
        better = margin.detach() < least
        least = torch.where(better, margin.detach(), least)
        best = torch.where(_shaped(better, x), point.detach(), best)
        if step == steps or clock.over():
            break
        # From half the ball down to a hundredth of it: coarse first, then fine.
        size = epsilon * (0.5 * (1.0 - step / steps) + 0.01)
        if norm == "linf":
            move = gradient.sign()
        else:
            length = nonzero(gradient.flatten(1).norm(dim=1))
            move = gradient / _shaped(length, x)
        point = project(point.detach() - move * _shaped(size, x), x, epsilon, norm=norm, clip=clip)
    limits = range_of(clip)
    if limits is not None and limits.whole:
        best = _whole(best, x, epsilon, norm)
    return best


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    label = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return label - others.amax(1)


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    dtype = values.dtype if values.dtype == torch.bool else like.dtype
    return values.reshape(-1, *([1] * (like.dim() - 1))).to(dtype)


def project(point: Tensor, x: Tensor, epsilon: Tensor, *, norm: str, clip: Clip) -> Tensor:
    """``point`` drawn back into the ball (a hair inside) and into the range ``clip``."""
    move = (point - x).nan_to_num(0.0)
    # x + move rounds to float32: up to u |x'| per coordinate.
    size = x.flatten(1).to(torch.float64)
    lost = size.abs().amax(1) if norm == "linf" else size.norm(dim=1)
    reach = epsilon - unit_roundoff(torch.float32) * (lost + epsilon)
    reach = reach.clamp_min(0.0) * (1.0 - INSIDE)
    if norm == "linf":
        limit = _shaped(reach, x)
        move = torch.maximum(torch.minimum(move, limit), -limit)
    else:
        length = nonzero(move.flatten(1).norm(dim=1, dtype=torch.float64))
        move = move * _shaped((reach / length).clamp_max(1.0), x)
    point = x + move
    limits = range_of(clip)
    if limits is not None:
        # Points of the data set outside the range stay allowed themselves.
        low, high = limits.ends(x)
        point = torch.maximum(torch.minimum(point, torch.maximum(x, high)), torch.minimum(x, low))
    return point


def _whole(point: Tensor, x: Tensor, epsilon: Tensor, norm: str) -> Tensor:
    """Whole numbers near ``point``, none farther from x (whole numbers, too) than epsilon."""
    move = (point - x).double()
    near = move.round()
    if norm == "linf":
        limit = _shaped(epsilon.floor(), near)
        near = torch.maximum(torch.minimum(near, limit), -limit)
    else:
        fits = near.flatten(1).norm(dim=1) <= epsilon
        near = torch.where(_shaped(fits, near), near, move.trunc())
    return (x + near).to(x.dtype)


def audit_selection(
    indices: NDArray[np.int64], *, share: float, seed: int, position: int
) -> NDArray[np.bool_]:
    """[N] bool: which certified samples are attacked all the same (independent of the shard)."""
    draws = [
        np.random.Generator(
            np.random.Philox(key=[(seed & (2**63 - 1)), int(index) * 65536 + 32768 + position])
        ).random()
        for index in indices
    ]
    return np.asarray(draws) < share
