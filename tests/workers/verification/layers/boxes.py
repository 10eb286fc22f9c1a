"""Boxes of one number each, of every size, the points of them that are tried, and curves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.layers.curves import (
    CELU,
    ELU,
    GELU,
    SELU,
    Atan,
    Cos,
    Erf,
    HardSwish,
    Mish,
    Power,
    SiLU,
    Sin,
    Softsign,
)
from models.layers.kinds import Layer

__all__ = ["CURVED", "DTYPES", "SPECIAL", "boxes", "grid"]

DTYPES = [torch.float32, torch.float64]
#: Every curved activation.
CURVED: list[Layer] = [
    *(ELU(), ELU(alpha=0.3), ELU(alpha=2.5), SELU(), CELU(alpha=0.5), CELU(alpha=3.0)),
    *(Softsign(), Erf(), SiLU(), GELU(), GELU(approximate="tanh"), HardSwish(), Mish()),
    *(Power(), Power(exponent=3), Atan(), Sin(), Cos()),
]
#: Numbers that boxes begin and end at: kinks, zeros, tiny and huge numbers.
SPECIAL = [
    *(-1e30, -1e4, -90.0, -1.0, -0.7, -0.5, -1e-7, -1e-30, 0.0),
    *(1e-30, 0.3, 0.4, 0.75, 1.25, 2.0, 9.0, 300.0, 1e9, 1e30),
]


def boxes(random: np.random.Generator, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Float32 boxes: random ones of all sizes, between special numbers, one-sided, points."""
    middle = random.standard_normal(count) * 10.0 ** random.uniform(-3, 2, count)
    half = 10.0 ** random.uniform(-9, 3, count)
    ends = np.stack([middle - half, middle + half])
    special = random.random((2, count)) < 0.4
    ends = np.where(special, random.choice(SPECIAL, (2, count)), ends)
    ends[1] = np.where(random.random(count) < 0.1, ends[0], ends[1])
    lower, upper = np.sort(ends.astype(np.float32), 0)
    return torch.from_numpy(lower).to(dtype)[None], torch.from_numpy(upper).to(dtype)[None]


def grid(lower: Tensor, upper: Tensor) -> Tensor:
    """Float32 points of the boxes [points, n]: even, dense near both ends, kinks and specials."""
    low, high = lower[0].double(), upper[0].double()
    share = torch.linspace(0, 1, 301, dtype=torch.float64)[:, None]
    near = torch.logspace(-12, 0, 60, dtype=torch.float64)[:, None]
    special = torch.tensor(SPECIAL, dtype=torch.float64)[:, None]
    small = torch.linspace(-12, 12, 201, dtype=torch.float64)[:, None]
    points = [low + share * (high - low), low + near * (high - low), high - near * (high - low)]
    points += [special.expand(-1, low.numel()), small.expand(-1, low.numel())]
    return torch.clamp(torch.cat(points).float().double(), low, high)
