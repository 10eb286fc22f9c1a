"""Replays counterexamples on the deployed network and checks their distance in float64.

A candidate of an attack or of a bound counts only after this.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.verification.answers import answers
from workers.verification.numerics import MANY, lowered

__all__ = ["Deployed", "breaks", "inside"]

#: [batch, *shape] float32 -> logits [batch, classes]: the network as it is deployed.
Deployed = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def breaks(
    deployed: Deployed,
    points: Tensor,
    x: Tensor,
    labels: Tensor,
    epsilon: Tensor,
    *,
    norm: str,
    clip: bool,
    gap: float = 0.0,
) -> Tensor:
    """[batch] bool: the deployed network gets the point wrong, and the point lies in the region.

    points, x [batch, *shape] float32; labels [batch]; epsilon [batch] float64 in pixel units. Wrong
    is where the label's deployed logit does not lead by more than ``gap``.
    """
    given = answers(torch.from_numpy(deployed(points.numpy())), gap=gap)
    wrong = given != labels
    return wrong & inside(points, x, epsilon, norm=norm, clip=clip)


def inside(point: Tensor, x: Tensor, epsilon: Tensor, *, norm: str, clip: bool) -> Tensor:
    """[batch] bool: the float32 points lie in the region, checked in float64."""
    move = (point.to(torch.float64) - x.to(torch.float64)).flatten(1)
    length = move.abs().amax(1) if norm == "linf" else move.norm(dim=1)
    allowed = length <= lowered(epsilon, MANY)
    if clip:
        low = x.clamp_max(0.0).flatten(1)
        high = x.clamp_min(1.0).flatten(1)
        flat = point.flatten(1)
        allowed &= ((flat >= low) & (flat <= high)).all(1)
    return allowed & torch.isfinite(point.flatten(1)).all(1)
