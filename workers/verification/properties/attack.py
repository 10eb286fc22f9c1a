"""Counterexamples to a property: descent on the unsafe cases inside a box, and the exact replay.

A point counts after ONNX Runtime's float32 outputs on it, taken as exact rationals, satisfy every
limit of one case, equality included, and its coordinates lie within the stated bounds, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.network import Network
from workers.verification.attacks.replay import Deployed
from workers.verification.clock import UNLIMITED, Clock, rows_per_piece
from workers.verification.properties.inputs import contains
from workers.verification.properties.lowering import Box, LinearLimit

__all__ = ["Counterexample", "descend", "replayed", "starting_points"]

STEPS = 40


@dataclass(frozen=True)
class Counterexample:
    """x [*shape] float32 and the outputs [outputs] float32 that ONNX Runtime computes for it."""

    x: NDArray[np.float32]
    y: NDArray[np.float32]


def replayed(points: NDArray[np.float32], box: Box, deployed: Deployed) -> Counterexample | None:
    """The first of the points [N, *shape] that is in the box and has unsafe outputs, exactly.

    It has them when it is run alone, too: a batch may be summed in another order.
    """
    if not len(points):
        return None
    for x, y in zip(points, deployed(points), strict=True):
        if _unsafe(box, y) and contains(box, x):
            alone = deployed(x[None])[0]
            if _unsafe(box, alone):
                return Counterexample(x.copy(), alone.copy())
    return None


def _unsafe(box: Box, y: NDArray[np.float32]) -> bool:
    finite = bool(np.isfinite(y).all())
    return finite and box.is_unsafe([Fraction(value) for value in y.tolist()])


def starting_points(
    low: NDArray[np.float32], high: NDArray[np.float32], count: int, rng: np.random.Generator
) -> Tensor:
    """[count, *shape] float32 points of the box: its middle, then random ones, some at corners."""
    below, above = low.astype(np.float64), high.astype(np.float64)
    share = rng.random((count, *low.shape))
    share[1::3] = np.round(share[1::3])
    share[0] = 0.5
    points = (below + share * (above - below)).astype(np.float32)
    return torch.from_numpy(np.clip(points, low, high))


def descend(
    network: Network,
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    case: Sequence[LinearLimit],
    points: Tensor,
    *,
    cost: float = 1.0,
    clock: Clock = UNLIMITED,
) -> NDArray[np.float32]:
    """``points`` [N, *shape] moved to where the case's limits are broken least: the best ones met.

    Signed gradient steps on max_k (c_k . y - limit_k), each coordinate in units of its own width.
    cost: multiplications of a forward pass. Gradients come from our own graph: only a guide.
    """
    parts = points.split(rows_per_piece(3 * cost, points.device))
    return np.concatenate(
        [_descend(network, low, high, case, part, clock).numpy() for part in parts]
    )


def _descend(
    network: Network,
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    case: Sequence[LinearLimit],
    point: Tensor,
    clock: Clock,
) -> Tensor:
    device = next(iter(network.state_dict().values()), point).device
    below, above = (torch.from_numpy(side).to(device) for side in (low, high))
    # Wider than the largest number is as wide as it.
    width = (above - below).clamp_max(torch.finfo(above.dtype).max)
    factors = torch.zeros(len(case), network.classes)
    for row, limit in enumerate(case):
        for place, factor in limit.factors:
            factors[row, place] = _float(factor)
    scale = factors.abs().amax(1).clamp_min(1e-30)
    factors = (factors / scale[:, None]).to(device)
    limits = torch.tensor([_float(limit.limit) for limit in case]) / scale
    limits = limits.to(device)
    point = point.to(device)
    best, least = point.clone(), torch.full((len(point),), torch.inf, device=device)
    for step in range(STEPS + 1):
        point = point.detach().requires_grad_(True)
        with torch.enable_grad():
            lack = (network(point) @ factors.T - limits).amax(1)
            (gradient,) = torch.autograd.grad(lack.sum(), point)
        better = lack.detach() < least
        least = torch.where(better, lack.detach(), least)
        best = torch.where(better.reshape(-1, *([1] * width.dim())), point.detach(), best)
        if step == STEPS or clock.over() or bool((least < 0).all()):
            break
        size = 0.5 * (1.0 - step / STEPS) + 0.01
        moved = point.detach() - size * width * gradient.nan_to_num(0.0).sign()
        point = torch.maximum(torch.minimum(moved, above), below)
    return best.cpu()


def _float(value: Fraction) -> float:
    """The value in the range of float32: only a guide."""
    return float(max(min(value, Fraction(10**30)), Fraction(-(10**30))))
