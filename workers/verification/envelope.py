"""Lines below and above an elementwise layer over a box, and rounding numbers outward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Envelope", "rounded_down", "rounded_up"]


@dataclass
class Envelope:
    """Elementwise lines over a box, [batch, *shape] each:

    lower_slope z + lower_intercept <= layer(z) <= upper_slope z + upper_intercept.
    ``free`` marks where the lower slope may be any value in [least_slope, 1] (unstable neurons).
    """

    lower_slope: Tensor
    lower_intercept: Tensor | None
    upper_slope: Tensor
    upper_intercept: Tensor
    free: Tensor
    least_slope: float


def rounded_down(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (float64) in ``dtype``, not above x."""
    if dtype == torch.float64:
        return x
    return torch.nextafter(x.to(dtype), torch.tensor(-torch.inf, dtype=dtype, device=x.device))


def rounded_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (float64) in ``dtype``, not below x."""
    return -rounded_down(-x, dtype)
