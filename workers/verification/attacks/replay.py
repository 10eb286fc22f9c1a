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
from workers.verification.input_range import Clip, range_of
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
    clip: Clip,
    gap: float = 0.0,
) -> Tensor:
    """[batch] bool: the deployed network gets the point wrong, and the point lies in the region.

    points, x [batch, *shape] float32; labels [batch]; epsilon [batch] float64 in units of the
    input. Wrong is where the label's deployed logit does not lead by more than ``gap``.
    """
    given = answers(torch.from_numpy(deployed(points.numpy())), gap=gap)
    wrong = given != labels
    return wrong & inside(points, x, epsilon, norm=norm, clip=clip)


def inside(point: Tensor, x: Tensor, epsilon: Tensor, *, norm: str, clip: Clip) -> Tensor:
    """[batch] bool: the float32 points lie in the region, checked in float64."""
    move = (point.to(torch.float64) - x.to(torch.float64)).flatten(1)
    length = move.abs().amax(1) if norm == "linf" else move.norm(dim=1)
    limits = range_of(clip)
    whole = limits is not None and limits.whole
    # The largest difference of whole numbers has no rounding.
    exact = whole and norm == "linf"
    allowed = length <= (epsilon if exact else lowered(epsilon, MANY))
    if limits is not None:
        low, high = limits.ends(x)
        within = (point >= torch.minimum(x, low)) & (point <= torch.maximum(x, high))
        allowed &= within.flatten(1).all(1)
    if whole:
        allowed &= (point == point.round()).flatten(1).all(1)
    return allowed & torch.isfinite(point.flatten(1)).all(1)
