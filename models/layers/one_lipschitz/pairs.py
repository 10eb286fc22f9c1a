"""Activations and pools on pairs of channels (c, c + C/2): folds of the plane, and maxima.

A fold keeps one side of a line through the origin and reflects the other one onto it: 1-Lipschitz,
and its gradient is orthogonal wherever it exists. MaxMin is the fold of the diagonal, so that every
fold is a rotation, MaxMin, and the rotation back: that is what is deployed (Householder
activations; Singla, Singla, Feizi 2022, arXiv:2108.04062, section 4).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.layers.activations import MaxMin
from models.layers.affine import Conv2d, Linear
from models.layers.base import DeployedLayer, Layer, Shape, ShapeError, parameter
from models.layers.joins import Slice

__all__ = ["ORDERS", "Householder", "PairMax"]

#: Folds in a row.
ORDERS = (1, 2)


def _even(kind: str, shape: Shape) -> Shape:
    if len(shape) not in (1, 3) or shape[0] % 2:
        raise ShapeError(f"{kind} pairs channels: {shape} has an odd number of them, or no image")
    return shape


class Householder(Layer):
    """``order`` folds in a row of each pair (x, y) of channels, angle theta [order, C / 2] each.

    With q = x sin(theta / 2) - y cos(theta / 2): the pair where q <= 0, else its reflection
    (x cos theta + y sin theta, x sin theta - y cos theta). theta = pi / 2 is (min, max). Two folds
    are the identity, two reflections and a rotation on four sectors.
    """

    kind = "householder"
    one_lipschitz = True

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = parameter(theta)
        if theta.dim() != 2 or theta.shape[0] not in ORDERS:
            raise ModelError(
                f"householder with angles of shape {tuple(theta.shape)}: [1 or 2, pairs] is needed",
                code="invalid_network",
            )

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        shape = (-1, *([1] * (x.dim() - 2)))
        for angle in self.theta:
            sine, cosine = (f(angle / 2).reshape(shape) for f in (torch.sin, torch.cos))
            beyond = 2 * torch.relu(first * sine - second * cosine)
            first, second = first - beyond * sine, second + beyond * cosine
        return torch.cat([first, second], dim=1)

    def output_shape(self, *shapes: Shape) -> Shape:
        shape = _even(self.kind, shapes[0])
        if self.theta.shape[1] * 2 != shape[0]:
            raise ShapeError(f"{self.kind} of {self.theta.shape[1]} pairs cannot take {shape}")
        return shape

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        """Rotations across channels around MaxMin; two in a row are one."""
        (shape,) = shapes
        angles = self.theta.detach().to(torch.float64)
        half = self.theta.shape[1]
        # With the line turned onto the diagonal the fold is (min, max): MaxMin and a swap.
        turns = [math.pi / 4 - angle / 2 for angle in angles]
        swap = torch.eye(2 * half).to(angles).roll(half, 0)
        maps = [_rotation(turns[0])]
        for before, after in itertools.pairwise(turns):
            maps.append(_rotation(after - before) @ swap)
        maps.append(_rotation(-turns[-1]) @ swap)
        parts: list[DeployedLayer] = []
        source: tuple[int | str, ...] = (0,)
        for index, matrix in enumerate(maps):
            weight = matrix.to(self.theta)
            flat = len(shape) == 1
            layer: Layer = Linear(weight) if flat else Conv2d(weight[:, :, None, None])
            name = "" if index == len(maps) - 1 else f"turn{index}"
            parts.append(DeployedLayer(layer, source, name))
            if name:
                parts.append(DeployedLayer(MaxMin(), (name,), f"fold{index}"))
                source = (f"fold{index}",)
        return tuple(parts)


def _rotation(angle: Tensor) -> Tensor:
    """[2 n, 2 n]: every pair (i, i + n) turned by its angle."""
    sine, cosine = torch.diag(torch.sin(angle)), torch.diag(torch.cos(angle))
    return torch.cat([torch.cat([cosine, -sine], 1), torch.cat([sine, cosine], 1)])


class PairMax(Layer):
    """max(x, y) of each pair of channels: half as many come out (pooling by projection)."""

    kind = "pair-max"
    one_lipschitz = True

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(*x.chunk(2, dim=1))

    def output_shape(self, *shapes: Shape) -> Shape:
        shape = _even(self.kind, shapes[0])
        return (shape[0] // 2, *shape[1:])

    def config(self) -> dict[str, Any]:
        return {}

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        """Both of each pair, then the maxima: two slices would count the input twice."""
        cut = Slice(axis=0, start=0, stop=shapes[0][0] // 2)
        return (DeployedLayer(MaxMin(), None, "pairs"), DeployedLayer(cut, ("pairs",)))
