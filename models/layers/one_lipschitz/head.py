"""The last layer: unit rows (last-layer normalisation), deployed with few roundings per logit.

Singla, Singla, Feizi 2022 (arXiv:2108.04062, section 5): the radius is the margin over
|w_y - w_j|, pair by pair.
"""

from __future__ import annotations

import torch

from models.layers.affine import Linear
from models.layers.base import DeployedLayer, Shape
from models.layers.one_lipschitz.partial_sums import block_and_levels, in_partial_sums
from models.layers.reparametrized import NormalizedLinear
from models.layers.shapes import Reshape

__all__ = ["NormalizedHead"]

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
        weight, features = weight.to(torch.float32), weight.shape[1]
        sizes = block_and_levels(features, LEVELS)
        if len(sizes) == 1:
            return (DeployedLayer(Linear(weight, self.bias)),)
        first, *rest = in_partial_sums(weight, self.bias, (), sizes)
        image = DeployedLayer(Reshape(shape=(features, 1, 1)), None, "image")
        return (image, first._replace(inputs=("image",)), *rest)
