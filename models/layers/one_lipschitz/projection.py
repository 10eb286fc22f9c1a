"""Projection pooling: of each pair of channels its signed distance to a cone (Singla, Feizi 2022).

The distance to a set is 1-Lipschitz, whatever the set. The planar cone {|angle| <= theta / 2} is
convex, so that the signed distance to it (negative inside) is the largest <n, p> over the unit
vectors n of the arc from one side's normal to the other's. Here n is one of 2^folds of them, the
two normals among them: the very distance inside the cone and beside it, and where the apex is the
nearest point at least cos(s / 2) of it, s = (pi - theta) / (2^folds - 1). A maximum of <n, p> over
unit vectors has norm 1, and so has its gradient wherever it exists.

The normals lie symmetrically about the cone's axis. Folding the plane at the axis of symmetry of
those that are left halves them and keeps the maximum, until one is left: folds (``pairs``) and one
unit row, of which each is a map of norm 1, in training and deployed alike.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.layers.base import DeployedLayer, Layer, Shape, ShapeError, parameter
from models.layers.one_lipschitz.pairs import around_folds, folded

__all__ = ["MAX_FOLDS", "ProjectionPool"]

#: 2^6 normals are within 3e-4 of the distance to the apex.
MAX_FOLDS = 6


class ProjectionPool(Layer):
    """Pairs (i, i + C / 2) of channels to one number; theta [C / 2] in [0, pi], opening angles."""

    kind = "projection-pool"
    one_lipschitz = True

    def __init__(self, theta: Tensor, *, folds: int = 3) -> None:
        super().__init__()
        self.theta = parameter(theta)
        self.folds = int(folds)
        if theta.dim() != 1 or not 1 <= self.folds <= MAX_FOLDS:
            raise ModelError(
                f"projection-pool with angles of shape {tuple(theta.shape)} and {folds} folds: "
                f"[pairs] and 1 to {MAX_FOLDS} are needed",
                code="invalid_network",
            )

    def _angles(self) -> Tensor:
        """Of the folds, as ``Householder`` has them: [folds, pairs]."""
        first, step = self._normal(), (math.pi - self.theta) / (2**self.folds - 1)
        counts = [2 ** (self.folds - index) - 1 for index in range(self.folds)]
        return torch.stack([2 * (first + step * (count / 2) + math.pi) for count in counts])

    def _normal(self) -> Tensor:
        """Angle of the upper side's normal, [pairs]."""
        return self.theta / 2 + math.pi / 2

    def forward(self, x: Tensor) -> Tensor:
        first, second = folded(x, self._angles())
        shape = (-1, *([1] * (x.dim() - 2)))
        cosine, sine = (f(self._normal()).reshape(shape) for f in (torch.cos, torch.sin))
        return cosine * first + sine * second

    def project(self) -> None:
        with torch.no_grad():
            self.theta.clamp_(0.0, math.pi)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if len(shape) not in (1, 3) or 2 * len(self.theta) != shape[0]:
            raise ShapeError(f"{self.kind} of {len(self.theta)} pairs cannot take {shape}")
        return (len(self.theta), *shape[1:])

    def config(self) -> dict[str, Any]:
        return {"folds": self.folds}

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        normal = self._normal().detach().to(torch.float64)
        rows = torch.stack([torch.cos(normal), torch.sin(normal)], dim=1)
        return around_folds(self._angles(), rows, shapes[0])
