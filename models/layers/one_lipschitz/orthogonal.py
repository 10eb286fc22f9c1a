"""One orthogonal matrix across the channels of every place: a 1 x 1 convolution of norm 1.

The weight itself is on the orthogonal group and kept there by the optimiser
(``workers.training.optimizers.orthogonal_muon``), so that a training step factorises nothing: as in
LipNeXt (2026) and trivialisations of the group (Lezcano-Casado 2019, arXiv:1909.09501). Deployed is
the nearest orthogonal matrix, found in float64.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.base import DeployedLayer, Shape, ShapeError
from models.layers.partial_sums import block_and_levels, in_partial_sums
from models.layers.reparametrized import OrthogonalConv2d

__all__ = ["OrthogonalChannels", "polar_factor"]


def polar_factor(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest to a square one, float64 (of any dtype, on its device).

    U V^T of the singular value decomposition; orthogonal to a few units of float64 roundoff. A
    matrix that is not finite is returned as it is; so is one on the device ``meta``.
    """
    matrix = matrix.detach().to(torch.float64)
    if matrix.is_meta or not bool(torch.isfinite(matrix).all()):
        return matrix
    left, _, right = torch.linalg.svd(matrix)
    product: Tensor = left @ right
    return product


class OrthogonalChannels(OrthogonalConv2d):
    """W x + b at every place; weight [channels, channels, 1, 1] orthogonal, bias [channels]."""

    kind = "orthogonal-channels"

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.bias

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """One matrix product over all places; the result lies in memory as ``channels_last``."""
        rows = x.permute(0, 2, 3, 1)
        result = F.linear(rows.reshape(-1, rows.shape[-1]), weight.flatten(1), bias)
        return result.unflatten(0, rows.shape[:3]).permute(0, 3, 1, 2)

    def output_shape(self, *shapes: Shape) -> Shape:
        if self.weight.shape[0] != self.weight.shape[1]:
            raise ShapeError(f"{self.kind} needs as many outputs as inputs")
        return super().output_shape(*shapes)

    def config(self) -> dict[str, Any]:
        return {}

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        _, height, width = shapes[0]
        matrix = polar_factor(self.weight.flatten(1)).to(torch.float32)
        sizes = block_and_levels(matrix.shape[1], 1)
        return in_partial_sums(matrix, self.bias, (height, width), sizes)
