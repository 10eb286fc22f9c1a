"""Convex potential layers: one length for all, 2 / |W|^2 (Meunier et al. 2022, arXiv:2110.12690).

In training |W| follows power steps, as published. Those are lower estimates: deployed is a proper
bound, the largest singular value over the frequencies of an image with room for the padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers.base import Shape, ShapeError, content_of
from models.layers.one_lipschitz.potentials.potential import Potential

__all__ = ["CplConv2d", "CplLinear"]

#: Share by which the deployed length stays below 2 / |W|^2, for roundings of weights and norm.
ROOM = 1e-5
TINY = 1e-12


class CplConv2d(Potential):
    """x - (2 / |W|^2) W^T relu(W x + b) on images; vector [c, h, w] follows the norm."""

    kind = "cpl-conv2d"

    def __init__(self, weight: Tensor, bias: Tensor, vector: Tensor) -> None:
        super().__init__(weight, bias)
        self.register_buffer("vector", vector.detach().clone())
        self.vector: Tensor
        #: The weight's content, a shape, and the length for them.
        self._frozen: tuple[tuple[bytes, Shape], Tensor] | None = None

    def lengths(self) -> Tensor:
        """From one power step, with a gradient through its end only."""
        with torch.no_grad():
            found = self.adjoint(self.inner(self.vector[None]))[0]
            self.vector.copy_(found / found.norm().clamp_min(TINY))
            vector = self.vector.clone()
        square = self.inner(vector[None]).square().sum()
        return (2 / square.clamp_min(TINY)).reshape(1)

    def frozen_lengths(self, shape: Shape) -> Tensor:
        state = (content_of(self.weight), shape)
        if self._frozen is None or self._frozen[0] != state:
            norm = _norm(self.weight.detach().to("cpu", torch.float64), shape)
            length = 2 * (1 - ROOM) / (norm * norm).clamp_min(TINY)
            self._frozen = (state, length.reshape(1))
        return self._frozen[1]

    def output_shape(self, *shapes: Shape) -> Shape:
        if tuple(self.vector.shape) != tuple(shapes[0]):
            raise ShapeError(f"{self.kind} was made for {tuple(self.vector.shape)}")
        return super().output_shape(*shapes)


class CplLinear(CplConv2d):
    """The same on flat inputs, W a matrix; vector [n]."""

    kind = "cpl-linear"


def _norm(weight: Tensor, shape: Shape) -> Tensor:
    """At least |W| up to float64 rounding: a zero-padded convolution is a part of a circulant one
    on a larger image."""
    if weight.dim() == 2:
        return torch.linalg.matrix_norm(weight, 2)
    grid = [size + k - 1 for size, k in zip(shape[1:], weight.shape[2:], strict=True)]
    symbols = torch.fft.rfft2(weight, s=grid).permute(2, 3, 0, 1).flatten(0, 1)
    largest = weight.new_zeros(())
    for part in symbols.split(64):
        largest = torch.maximum(largest, torch.linalg.matrix_norm(part, 2).max())
    return largest
