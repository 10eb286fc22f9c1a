"""Activations and pools on pairs of channels (c, c + C/2): folds of the plane, and maxima.

A fold keeps one side of a line through the origin and reflects the other one onto it: 1-Lipschitz,
and its gradient is orthogonal wherever it exists. MaxMin is the fold of the diagonal, so that every
fold is a rotation, MaxMin, and the rotation back: that is what is deployed (Householder
activations; Singla, Singla, Feizi 2022, arXiv:2108.04062, section 4).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.layers.activations import MaxMin
from models.layers.affine import Conv2d
from models.layers.base import (
    DeployedLayer,
    Layer,
    Shape,
    ShapeError,
    parameter,
    require_broadcast,
)
from models.layers.joins import Slice
from models.layers.shapes import Permute, Reshape

__all__ = ["ORDERS", "Householder", "InexactPairs", "PairMax", "around_folds", "folded"]

#: Folds in a row.
ORDERS = (1, 2)
#: How far a deployed pair may be from what it stands for, over its length, at most.
LARGEST_SHARE = 0.25


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
        return torch.cat(folded(x, self.theta), dim=1)

    def output_shape(self, *shapes: Shape) -> Shape:
        shape = _even(self.kind, shapes[0])
        if self.theta.shape[1] * 2 != shape[0]:
            raise ShapeError(f"{self.kind} of {self.theta.shape[1]} pairs cannot take {shape}")
        return shape

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        """Rotations of pairs around MaxMin; two in a row are one."""
        (shape,) = shapes
        return around_folds(self.theta, None, shape)


def folded(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Both halves of the channels after a fold for each row of angles [order, C / 2]."""
    first, second = x.chunk(2, dim=1)
    shape = (-1, *([1] * (x.dim() - 2)))
    for angle in theta:
        sine, cosine = (f(angle / 2).reshape(shape) for f in (torch.sin, torch.cos))
        beyond = 2 * torch.relu(first * sine - second * cosine)
        first, second = first - beyond * sine, second + beyond * cosine
    return first, second


def around_folds(theta: Tensor, last: Tensor | None, shape: Shape) -> tuple[DeployedLayer, ...]:
    """Folds of the angles [order, pairs] as plain layers, for inputs of ``shape``.

    last [pairs, 2]: unit rows that each pair is read by in the end; None: the pairs themselves.
    """
    angles = theta.detach().to(torch.float64)
    # With the line turned onto the diagonal the fold is (min, max): MaxMin and a swap.
    turns = [math.pi / 4 - angle / 2 for angle in angles]
    maps = [_rotation(turns[0])]
    maps += [_rotation(after - before).flip(2) for before, after in itertools.pairwise(turns)]
    back = _rotation(-turns[-1]).flip(2)
    if last is not None:
        back = last.detach().to(torch.float64)[:, None] @ back
    parts: list[DeployedLayer] = []
    source: int | str = 0
    for index, matrices in enumerate([*maps, back]):
        ends = index == len(maps)
        parts += _of_pairs(matrices.to(theta), shape, source, f"turn{index}", ends=ends)
        if not ends:
            source = f"fold{index}"
            parts.append(DeployedLayer(MaxMin(), (f"turn{index}",), source))
    return tuple(parts)


def _rotation(angle: Tensor) -> Tensor:
    """[n, 2, 2]: the rotations by n angles."""
    sine, cosine = torch.sin(angle), torch.cos(angle)
    return torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)


def _of_pairs(
    matrices: Tensor, shape: Shape, source: int | str, name: str, *, ends: bool
) -> Iterator[DeployedLayer]:
    """Matrices [n, 1 or 2, 2], one for each pair (i, i + n) of channels: a convolution in groups of
    two, so that an output is two products, between moves. The last layer is ``name``, or has no
    name where it ``ends`` the sub-graph.
    """
    pairs, out, _ = matrices.shape
    places = tuple(shape[1:]) or (1, 1)
    rows: list[Layer] = [
        Reshape(shape=(2, pairs, *places)),
        Permute(axes=(1, 0, 2, 3)),
        Reshape(shape=(2 * pairs, *places)),
        Conv2d(matrices.reshape(-1, 2, 1, 1), groups=pairs),
    ]
    if out == 2:
        rows += [Reshape(shape=(pairs, 2, *places)), Permute(axes=(1, 0, 2, 3))]
    rows.append(Reshape(shape=(out * pairs, *shape[1:])))
    for index, layer in enumerate(rows):
        last = index == len(rows) - 1
        here = ("" if ends else name) if last else f"{name}-{index}"
        yield DeployedLayer(layer, (source,), here)
        source = here


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


class InexactPairs(Layer):
    """The input itself, of which the deployed value may differ: of each pair (c, c + C / 2) of
    channels by at most ``share`` times its length.

    No operator: the file computes what comes before it in a way of its own (a fold by a comparison)
    that is so near. share: float32, from 0 to ``LARGEST_SHARE``, broadcastable to half the
    channels.
    """

    kind = "inexact-pairs"
    share: Tensor

    def __init__(self, share: Tensor) -> None:
        super().__init__()
        self.register_buffer("share", share.detach().clone().contiguous())
        fits = share.is_meta or bool(((share >= 0.0) & (share <= LARGEST_SHARE)).all())
        if not fits or share.dtype != torch.float32:
            raise ModelError(
                f"{self.kind}: only float32 shares from 0 to {LARGEST_SHARE}",
                code="invalid_network",
            )

    def forward(self, x: Tensor) -> Tensor:
        return x

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if not shape or shape[0] % 2:
            raise ShapeError(f"{self.kind} pairs channels: {shape} has an odd number of them")
        require_broadcast(self.kind, self.share, (shape[0] // 2, *shape[1:]))
        return shape
