"""Which inputs are valid: every coordinate between two float32 numbers, or any number at all.

``clip`` is the name of such a choice everywhere: ``True`` is pixels in [0, 1], ``False`` no range,
an ``InputRange`` any other one, for all coordinates or for each channel or feature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.network import NetworkError, per_channel
from workers.verification.numerics import raised

__all__ = ["PIXELS", "Clip", "InputRange", "in_range", "range_of"]


@dataclass(frozen=True)
class InputRange:
    """Coordinates from ``low`` to ``high``, one number for all or one per channel or feature.

    Every end is a float32 number (``between`` rounds outward). whole: only whole numbers are valid,
    as where the deployed file takes bytes: what is proved of all numbers between holds for them,
    but a counterexample has to be one.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    whole: bool = False

    @classmethod
    def between(
        cls, low: Sequence[float], high: Sequence[float], *, whole: bool = False
    ) -> InputRange:
        """From ends of any precision, each rounded outward to float32."""
        return cls(
            tuple(_float32(value, -math.inf) for value in low),
            tuple(_float32(value, math.inf) for value in high),
            whole,
        )

    def ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(lowest, highest) inputs, exact, as they broadcast to ``like`` [batch, *shape].

        Raises NetworkError where there is not one number per channel or feature.
        """
        return _ends(self, tuple(like.shape[1:]), like.dtype, like.device)

    def widths(self, shape: tuple[int, ...]) -> Tensor:
        """Of each coordinate of an input, [*shape] float64, rounded up."""
        low, high = _ends(self, shape, torch.float64, torch.device("cpu"))
        width = high - low
        # A difference that float64 holds exactly is not raised.
        exact = (low + width == high) & (high - width == low)
        return torch.where(exact, width, raised(width, 1)).expand(shape)


#: What a spec means that says nothing.
PIXELS = InputRange((0.0,), (1.0,))

#: True: pixels in [0, 1]; False: any input.
Clip = bool | InputRange


def range_of(clip: Clip) -> InputRange | None:
    """The range that inputs stay in; None where there is none."""
    if isinstance(clip, InputRange):
        return clip
    return PIXELS if clip else None


def in_range(x: NDArray[np.float32], clip: Clip) -> bool:
    """Whether all inputs [N, *shape] are valid ones. Raises NetworkError as ``InputRange.ends``."""
    limits = range_of(clip)
    if limits is None or not len(x):
        return True
    inputs = torch.from_numpy(x)
    low, high = limits.ends(inputs)
    valid = bool(((inputs >= low) & (inputs <= high)).all())
    return valid and (not limits.whole or bool((inputs == inputs.round()).all()))


@lru_cache(maxsize=64)
def _ends(
    limits: InputRange, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    # Of features each has its own: no stretches, as an image has channels.
    if len(shape) == 1 and any(len(end) not in (1, *shape) for end in (limits.low, limits.high)):
        raise NetworkError(
            f"a range of {max(len(limits.low), len(limits.high))} numbers does not fit "
            f"{shape[0]} features",
            hint="give one low and one high, or one of each for every feature",
        )
    low, high = (per_channel(values, shape) for values in (limits.low, limits.high))
    return low.to(device, dtype), high.to(device, dtype)


def _float32(value: float, towards: float) -> float:
    """The nearest float32 number on the side of ``towards``, never beyond the finite ones."""
    with np.errstate(over="ignore"):
        near = np.float32(value)
    if (float(near) > value) if towards < 0 else (float(near) < value):
        near = np.nextafter(near, np.float32(towards))
    largest = np.finfo(np.float32).max
    return float(min(max(near, -largest), largest))
