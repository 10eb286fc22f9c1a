"""What every step of a random graph is: a function that adds an operator to a builder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.models.differential.builder import Builder, Shape

__all__ = ["ODD", "Step", "an_axis", "broadcast", "maybe_batch"]

#: The builder, the name and the shape of an activation in; the name of the operator's output out.
Step = Callable[[Builder, str, Shape], str]

#: How often a step does what is likely to be refused.
ODD = 0.04


def an_axis(b: Builder, shape: Shape) -> int:
    """An axis of the sample as ONNX counts it, from either end; the batch is put in later."""
    axis = b.number(1, len(shape))
    return axis - (len(shape) + 1 if b.chance(0.5) and b.opset >= 11 else 0)


def broadcast(b: Builder, shape: Shape, *, positive: bool = False) -> str:
    """A constant that broadcasts to the batch: of any rank, with ones in any place."""
    if b.chance(ODD):
        sizes: list[int] = [2, *shape]
    else:
        kept = b.number(0, len(shape))
        sizes = [size if b.chance(0.6) else 1 for size in shape[len(shape) - kept :]]
        if kept == len(shape) and b.chance(0.5):
            sizes = [1, *sizes]
        if len(sizes) == len(shape) + 1 and b.chance(ODD):
            sizes = [1, *sizes]
    array = b.normal(*sizes)
    return b.constant(np.abs(array) + np.float32(0.5) if positive else array)


def maybe_batch(b: Builder, axis: int, shape: Shape) -> int:
    """The axis, rarely the batch's in its place."""
    return int(b.pick([0, -len(shape) - 1])) if b.chance(ODD) else axis
