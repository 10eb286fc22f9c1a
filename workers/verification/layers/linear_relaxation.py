"""Lines below and above an elementwise layer over a box."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["LinearRelaxation"]


@dataclass
class LinearRelaxation:
    """Elementwise lines over a box, [batch, *shape] each:

    lower_slope z + lower_intercept <= layer(z) <= upper_slope z + upper_intercept.
    ``free`` marks where the lower slope may be any value in [least_slope, 1] (unstable neurons).
    """

    lower_slope: Tensor
    lower_intercept: Tensor | None
    upper_slope: Tensor
    upper_intercept: Tensor
    free: Tensor
    min_slope: float
