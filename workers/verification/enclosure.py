"""An enclosure: the ball and the box that hold a value of the network over a region."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.verification.numerics import euclidean_norm, raised

__all__ = ["CORNER_SIZE", "Enclosure", "box_to_ball", "cut_box"]

#: Boxes of more numbers than this hardly ever have a corner nearer than the ball's radius.
CORNER_SIZE = 2048


@dataclass
class Enclosure:
    """centre, lower, upper [batch, *shape]; radius [batch] float64; valid [batch] bool.

    Every deployed float32 value z' satisfies |z' - centre|_2 <= radius and lower <= z' <= upper.
    lower and upper are None when only the ball is carried; radius is infinite when only the box is.
    valid: False where the deployed float32 may overflow; nothing is certified there. NaN propagates
    and certifies nothing.
    round: the box is the one around the ball (of an l2 region). Through a wide affine map the ball
    is tighter than this box, so the interval product is left out.
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


def cut_box(own: Enclosure | None, known: Enclosure | None) -> None:
    """``own`` <- its box and that of ``known``, in place; what they do not share stays as it is.

    Both hold the same numbers, and so share some, but where roundings are ignored.
    """
    if own is None or known is None or own.lower is None or own.upper is None:
        return
    if known.lower is not None and known.upper is not None:
        lower = torch.maximum(own.lower, known.lower)
        upper = torch.minimum(own.upper, known.upper)
        shared = lower <= upper
        own.lower = torch.where(shared, lower, own.lower)
        own.upper = torch.where(shared, upper, own.upper)
