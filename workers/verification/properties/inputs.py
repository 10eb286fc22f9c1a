"""A box of exact rationals as floats: outward for proofs, inward for counterexamples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.verification.properties.errors import PropertyError
from workers.verification.properties.lowering import Box
from workers.verification.region import float_above

__all__ = ["contains", "float32_box", "outer_box"]

_MAX = Fraction(float(np.finfo(np.float32).max))


def outer_box(box: Box, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Lower and upper ends [*shape] float64 that leave no finite float32 input of the box out.

    Raises PropertyError where no finite float32 number can be in the box.
    """
    for number, (low, high) in enumerate(zip(box.lower, box.upper, strict=True)):
        if low > _MAX or high < -_MAX:
            raise PropertyError(
                "empty_box",
                f"no float32 number satisfies the bounds of X_{number}: they lie beyond 3.4e38",
                "inputs are float32 numbers",
            )
    lower = [-float_above(-max(value, -_MAX)) for value in box.lower]
    upper = [float_above(min(value, _MAX)) for value in box.upper]
    ends = (torch.tensor(side, dtype=torch.float64) for side in (lower, upper))
    first, second = (end.reshape(*shape) for end in ends)
    return first, second


def float32_box(
    box: Box, shape: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """The least and the largest float32 inputs [*shape] of the box; None where it holds none."""
    low = np.array([_least(value) for value in box.lower], dtype=np.float32)
    high = np.array([-_least(-value) for value in box.upper], dtype=np.float32)
    if not bool((low <= high).all() and np.isfinite(low).all() and np.isfinite(high).all()):
        return None
    return low.reshape(*shape), high.reshape(*shape)


def contains(box: Box, x: NDArray[np.float32]) -> bool:
    """Whether the float32 input is in the box, exactly."""
    values = x.reshape(-1).tolist()
    if not all(map(math.isfinite, values)):
        return False
    exact = map(Fraction, values)
    return all(a <= v <= b for a, v, b in zip(box.lower, exact, box.upper, strict=True))


def _least(value: Fraction) -> np.float32:
    """The least float32 number that is not below value; infinite beyond the largest one."""
    if value > _MAX:
        return np.float32(np.inf)
    near = np.float32(float(max(value, -_MAX)))
    if Fraction(float(near)) < value:
        with np.errstate(all="ignore"):
            near = np.nextafter(near, np.float32(np.inf))
    return near
