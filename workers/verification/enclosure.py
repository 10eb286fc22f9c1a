"""What holds a value of the network over a region: ball and box together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.verification.numerics import euclidean_norm, raised

__all__ = ["CORNER_SIZE", "Enclosure", "box_to_ball"]

#: Boxes of more numbers than this hardly ever have a corner nearer than the ball's radius.
CORNER_SIZE = 2048


@dataclass
class Enclosure:
    """centre, lower, upper [batch, *shape]; radius [batch] float64; valid [batch] bool.

    round: the box is the ball's own (an l2 region's): through a wide affine map the ball alone is
    tighter, and the interval product can be saved.

    lower and upper are None when only the ball is carried; radius is infinite when only the box is.
    ``valid`` falls where the deployed float32 may overflow: nothing may be concluded there. What is
    not finite stays so (NaN) to the end, where nothing is concluded from it.
    """

    centre: Tensor
    radius: Tensor
    lower: Tensor | None
    upper: Tensor | None
    valid: Tensor
    round: bool = False


def box_to_ball(state: Enclosure) -> Enclosure:
    """radius <- min(radius, distance from the centre to the farthest corner of the box)."""
    if state.lower is None or state.upper is None or bool(torch.isinf(state.radius).all()):
        return state
    if state.lower[0].numel() > CORNER_SIZE:
        return state
    corner = torch.maximum(state.upper - state.centre, state.centre - state.lower)
    distance = raised(euclidean_norm(corner), 3, corner.dtype)
    state.radius = torch.minimum(state.radius, distance)
    return state
