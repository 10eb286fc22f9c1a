"""Almost orthogonal layers: columns over their row sums (Prach, Lampert 2022, arXiv:2208.03160).

P D with D_ii = (sum_j |P^T P|_ij)^(-1/2) has a norm of at most 1 (theorem 1); of a convolution
P^T P is the kernel's correlation with itself, summed over all distances. Deployed is the plain
kernel, made in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.affine import Conv2d, Linear
from models.layers.base import DeployedLayer, Shape, ShapeError
from models.layers.one_lipschitz.head import SummedLinear
from models.layers.partial_sums import convolution_in_partial_sums

__all__ = ["AolConv2d", "AolLinear"]

#: Columns of zeros have no length: their sum counts as this.
TINY = 1e-12


class AolConv2d(Conv2d):
    """Convolution with the rescaled kernel: weight [out, in, k, k], any padding and stride."""

    kind = "aol-conv2d"
    one_lipschitz = True

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        return _rescaled(self.weight), self.bias

    def output_shape(self, *shapes: Shape) -> Shape:
        if self.groups != 1 or self.dilation != (1, 1):
            raise ShapeError(f"{self.kind} needs no groups and no dilation")
        return super().output_shape(*shapes)

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        weight = self.weight.detach()
        if not weight.is_meta:
            weight = _rescaled(weight.to(torch.float64)).to(weight)
        shape = shapes[0]
        return convolution_in_partial_sums(weight, self.bias, shape, self.padding, self.stride)


class AolLinear(Linear):
    """Dense layer with the rescaled matrix: weight [out, in]."""

    kind = "aol-linear"
    one_lipschitz = True

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        return _rescaled(self.weight), self.bias

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        weight = self.weight.detach()
        if not weight.is_meta:
            weight = _rescaled(weight.to(torch.float64)).to(weight)
        return SummedLinear(weight, self.bias).deployed(*shapes)


def _rescaled(weight: Tensor) -> Tensor:
    """P D, in the weight's dtype."""
    if weight.dim() == 2:
        sums = (weight.T @ weight).abs().sum(1)
    else:
        columns = weight.transpose(0, 1)
        reach = (weight.shape[2] - 1, weight.shape[3] - 1)
        sums = F.conv2d(columns, columns, padding=reach).abs().sum((1, 2, 3))
    shaped = sums.clamp_min(TINY).rsqrt().reshape(1, -1, *([1] * (weight.dim() - 2)))
    return weight * shaped
