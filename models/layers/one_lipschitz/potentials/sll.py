"""SDP-based Lipschitz layers: l by row sums (Araujo et al. 2023, arXiv:2303.03169, theorem 3).

l_i = 2 / T_i, T_i = sum_j |W W^T|_ij q_j / q_i with trained q > 0: T - W W^T is diagonally dominant
up to the scaling q, hence W^T T^-1 W <= I.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.base import Shape, ShapeError, parameter
from models.layers.one_lipschitz.potentials.potential import Potential

__all__ = ["SllConv2d", "SllLinear"]

#: Rows of zeros have no length: their sum counts as this.
TINY = 1e-12


class SllConv2d(Potential):
    """x - 2 W^T T^-1 relu(W x + b) on images; scale [inner] is log q."""

    kind = "sll-conv2d"

    def __init__(self, weight: Tensor, bias: Tensor, scale: Tensor) -> None:
        super().__init__(weight, bias)
        self.scale = parameter(scale)

    def lengths(self) -> Tensor:
        return _lengths(self.weight, self.scale)

    def frozen_lengths(self, shape: Shape) -> Tensor:
        return _lengths(self.weight.detach().double(), self.scale.detach().double())

    def output_shape(self, *shapes: Shape) -> Shape:
        if self.scale.shape != self.bias.shape:
            raise ShapeError(f"{self.kind}: a scale of shape {tuple(self.scale.shape)}")
        return super().output_shape(*shapes)


class SllLinear(SllConv2d):
    """The same on flat inputs, W a matrix."""

    kind = "sll-linear"


def _lengths(weight: Tensor, scale: Tensor) -> Tensor:
    if weight.dim() == 2:
        gram = (weight @ weight.T).abs()
    else:
        # Entry (i, j, d): taps of the rows i and j that meet at a distance of d places.
        reach = (weight.shape[2] - 1, weight.shape[3] - 1)
        gram = F.conv2d(weight, weight, padding=reach).abs().sum((2, 3))
    # Of q only quotients count.
    q = torch.exp(scale - scale.amax().detach())
    return 2 * q / (gram @ q).clamp_min(TINY)
