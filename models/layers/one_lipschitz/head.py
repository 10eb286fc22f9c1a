"""Dense layers that are deployed with few roundings per output; the last one with unit rows (LLN).

Singla, Singla, Feizi 2022 (arXiv:2108.04062, section 5): the radius is the margin over
|w_y - w_j|, pair by pair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers.affine import Linear
from models.layers.base import DeployedLayer, Shape
from models.layers.partial_sums import block_and_levels, in_partial_sums
from models.layers.reparametrized import NormalizedLinear
from models.layers.shapes import Reshape

__all__ = ["NormalizedHead", "SummedLinear"]

#: Levels of partial sums: there are few outputs, so that they cost next to nothing.
LEVELS = 2


class NormalizedHead(NormalizedLinear):
    """Dense layer whose rows have norm 1: weight [classes, features], bias [classes]."""

    kind = "normalized-head"

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        weight = self.weight.detach()
        if not weight.is_meta:
            weight = weight.to(torch.float64)
            weight = weight / torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min(1e-12)
        return _summed(weight.to(torch.float32), self.bias)


class SummedLinear(Linear):
    """A dense layer like any other, deployed in partial sums: for wide ones that are certified."""

    kind = "summed-linear"

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        return _summed(self.weight, self.bias)


def _summed(weight: Tensor, bias: Tensor | None) -> tuple[DeployedLayer, ...]:
    features = weight.shape[1]
    sizes = block_and_levels(features, LEVELS)
    if len(sizes) == 1:
        return (DeployedLayer(Linear(weight, bias)),)
    first, *rest = in_partial_sums(weight, bias, (), sizes)
    image = DeployedLayer(Reshape(shape=(features, 1, 1)), None, "image")
    return (image, first._replace(inputs=("image",)), *rest)
