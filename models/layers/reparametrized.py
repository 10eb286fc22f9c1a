"""Layers whose weight is a function of what is trained, so that its norm is known or cheap.

``tensors()`` gives weight and bias as they act; ``deployed()`` is the plain layer with these
numbers, and nothing else is ever deployed or certified. Which layers they are: residual kernels of
LiResNet (Hu et al. 2023, arXiv:2301.12549, section 4.1) and its Cholesky-orthogonalised necks and
dense layers (Hu et al. 2024, arXiv:2310.02513, section 3), last-layer normalisation (Singla et al.
2022, arXiv:2108.04062, section 5).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.layers.affine import Conv2d, Linear
from models.layers.base import DeployedLayer, Shape, ShapeError
from models.layers.partial_sums import convolution_in_partial_sums

__all__ = [
    "REPARAMETRIZED",
    "NormalizedLinear",
    "OrthogonalConv2d",
    "OrthogonalLinear",
    "ResidualConv2d",
    "ResidualOrthogonalLinear",
    "orthogonalized",
]

#: Added to the Gram matrix's diagonal, relative to its mean: keeps the factorisation going.
_RIDGE = 1e-6


def orthogonalized(weight: Tensor) -> Tensor:
    """A matrix [out, in] with orthonormal rows (columns, if there are fewer) from any matrix.

    L^-1 W with L L^T = W W^T (Cholesky), in the weight's dtype: orthonormal up to rounding, less
    exactly where W is nearly singular. NaN where a weight is not finite: raising would have to wait
    for the device.
    """
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
    gram = wide @ wide.T
    ridge = _RIDGE * gram.diagonal().mean().detach()
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram + ridge * eye)
    factor = torch.where(failed == 0, factor, torch.nan)
    rows = torch.linalg.solve_triangular(factor, wide, upper=False)
    return rows if wide is weight else rows.T


class OrthogonalLinear(Linear):
    """Dense layer whose weight is ``orthogonalized``: 1-Lipschitz, and so is its inverse."""

    kind = "orthogonal-linear"
    one_lipschitz = True

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        return orthogonalized(self.weight), self.bias

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        return (DeployedLayer(Linear(*self.tensors())),)


class ResidualOrthogonalLinear(OrthogonalLinear):
    """Square dense layer: I + scale * gain * W, orthogonalised (LiResNet's dense part).

    gain [out, 1] is trained; the layer begins near the identity, however many follow one another.
    """

    kind = "residual-orthogonal-linear"

    def __init__(
        self, weight: Tensor, gain: Tensor, bias: Tensor | None = None, *, scale: float = 1.0
    ) -> None:
        super().__init__(weight, bias)
        self.gain = nn.Parameter(gain.detach().clone())
        self.scale = float(scale)

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        residual = self.scale * self.gain * self.weight
        identity = torch.eye(len(residual), dtype=residual.dtype, device=residual.device)
        return orthogonalized(identity + residual), self.bias

    def output_shape(self, *shapes: Shape) -> Shape:
        if self.weight.shape[0] != self.weight.shape[1]:
            raise ShapeError(f"{self.kind} needs as many outputs as inputs")
        return super().output_shape(*shapes)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "scale": self.scale}


class NormalizedLinear(Linear):
    """Dense layer whose rows have norm 1, for the last layer (LLN)."""

    kind = "normalized-linear"

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        norms = torch.linalg.vector_norm(self.weight, dim=1, keepdim=True)
        return self.weight / norms.clamp_min(1e-12), self.bias

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        return (DeployedLayer(Linear(*self.tensors())),)


class OrthogonalConv2d(Conv2d):
    """Convolution over disjoint windows (stride = kernel) with an orthogonalised kernel matrix."""

    kind = "orthogonal-conv2d"
    one_lipschitz = True

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        return orthogonalized(self.weight.flatten(1)).reshape(self.weight.shape), self.bias

    def output_shape(self, *shapes: Shape) -> Shape:
        plain = self.groups == 1 and self.dilation == (1, 1)
        if not plain or tuple(self.weight.shape[2:]) != self.stride:
            raise ShapeError(f"{self.kind} needs stride = kernel, no groups and no dilation")
        return super().output_shape(*shapes)

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        """In sums of partial sums: a neck reads thousands of numbers."""
        weight, bias = self.tensors()
        return convolution_in_partial_sums(weight, bias, shapes[0], self.padding, self.stride)


class ResidualConv2d(Conv2d):
    """Convolution with kernel I + scale * gain * K: the norm of the SUM is taken (LiResNet).

    gain [out, 1, 1, 1] is trained, ``scale`` is 1 / sqrt(depth). Input and output shapes are equal.
    """

    kind = "residual-conv2d"

    def __init__(
        self,
        weight: Tensor,
        gain: Tensor,
        bias: Tensor | None = None,
        *,
        scale: float = 1.0,
        **geometry: Any,
    ) -> None:
        super().__init__(weight, bias, **geometry)
        self.gain = nn.Parameter(gain.detach().clone())
        self.scale = float(scale)

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        kernel = self.scale * self.gain * self.weight
        identity = torch.zeros_like(kernel)
        nn.init.dirac_(identity)
        return kernel + identity, self.bias

    def output_shape(self, *shapes: Shape) -> Shape:
        shape = super().output_shape(*shapes)
        odd = all(size % 2 for size in self.weight.shape[2:])
        if shape != shapes[0] or self.groups != 1 or not odd or self.dilation != (1, 1):
            raise ShapeError(f"{self.kind} needs an odd kernel that keeps the shape {shapes[0]}")
        return shape

    def config(self) -> dict[str, Any]:
        return {**super().config(), "scale": self.scale}

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        return (DeployedLayer(_plain_conv(self)),)


def _plain_conv(layer: Conv2d) -> Conv2d:
    return Conv2d(
        *layer.tensors(),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )


#: Layers that are trained as they are here and deployed as something else.
REPARAMETRIZED = (
    NormalizedLinear,
    OrthogonalConv2d,
    OrthogonalLinear,
    ResidualConv2d,
    ResidualOrthogonalLinear,
)
