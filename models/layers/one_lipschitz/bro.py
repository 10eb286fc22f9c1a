"""Block reflectors W = I - 2 V (V* V)^-1 V*: orthogonal, of low rank (BRO; Lai et al. 2025).

Of a convolution with windows around the image V is a matrix at each frequency, and so is W: an
orthogonal map of the whole image, whose own window is the whole image. A kernel of one place is one
matrix across channels, deployed as such at every place; the map of a small image as one matrix.
V* V gets a little added to its diagonal, which only contracts: eigenvalues are 1 - 2 s / (s + eps).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.layers.base import DeployedLayer, Layer, Shape, ShapeError, parameter
from models.layers.one_lipschitz.head import SummedLinear
from models.layers.partial_sums import block_and_levels, in_partial_sums
from models.layers.shapes import Reshape

__all__ = ["LARGEST_IMAGE", "BroConv2d", "BroLinear"]

#: Added to the diagonal of V* V, relative to its mean.
RIDGE = 1e-6
#: Values of an image whose map is deployed as one matrix, at most.
LARGEST_IMAGE = 2048


def _reflector(v: Tensor) -> Tensor:
    """[..., n, n] of V [..., n, r]."""
    gram = v.mH @ v
    diagonal = gram.diagonal(dim1=-2, dim2=-1).real
    ridge = RIDGE * diagonal.mean(-1).clamp_min(1e-12)
    rank, size = v.shape[-1], v.shape[-2]
    eye = torch.eye(rank, dtype=v.dtype, device=v.device)
    solved = torch.linalg.solve(gram + ridge[..., None, None] * eye, v.mH)
    return torch.eye(size, dtype=v.dtype, device=v.device) - 2 * (v @ solved)


class BroConv2d(Layer):
    """W x + bias on images [c, h, w], windows going around; weight V [c, rank, k, k], bias [c]."""

    kind = "bro-conv2d"
    one_lipschitz = True

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = parameter(weight), parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.shape[2:] == (1, 1):
            matrix = _reflector(self.weight.flatten(1))
            moved = torch.einsum("oi,bihw->bohw", matrix, x)
        else:
            height, width = x.shape[2:]
            spectrum = torch.fft.rfft2(x)
            at = _reflector(_symbols(self.weight, (height, width)))
            moved = torch.fft.irfft2(
                torch.einsum("hwoi,bihw->bohw", at, spectrum), s=(height, width)
            )
        return moved + self.bias[:, None, None]

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        channels, rank, height, width = self.weight.shape
        if len(shape) != 3 or shape[0] != channels or not rank < channels:
            raise ShapeError(
                f"{self.kind} with weight {tuple(self.weight.shape)} cannot take {shape}"
            )
        if height > shape[1] or width > shape[2]:
            raise ShapeError(f"{self.kind}: a kernel of {(height, width)} does not fit {shape}")
        if (height, width) != (1, 1) and torch.Size(shape).numel() > LARGEST_IMAGE:
            raise ShapeError(
                f"{self.kind} takes images of at most {LARGEST_IMAGE} values, not {shape}: "
                "use a kernel of 1, or more channels at fewer places"
            )
        return shape

    def config(self) -> dict[str, Any]:
        return {}

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        (shape,) = shapes
        channels, height, width = shape
        weight = self.weight.detach()
        if weight.shape[2:] == (1, 1):
            matrix = weight.new_empty(channels, channels)
            if not weight.is_meta:
                matrix = _reflector(weight.flatten(1).to(torch.float64)).to(weight)
            sizes = block_and_levels(channels, 1)
            return in_partial_sums(matrix, self.bias, (height, width), sizes)
        values = channels * height * width
        matrix = weight.new_empty(values, values)
        if not weight.is_meta:
            at = _reflector(_symbols(weight.to("cpu", torch.float64), (height, width)))
            units = torch.eye(values, dtype=torch.float64).reshape(-1, *shape)
            images = torch.einsum("hwoi,bihw->bohw", at, torch.fft.rfft2(units))
            matrix = torch.fft.irfft2(images, s=(height, width)).flatten(1).T.to(weight)
        bias = nn.Parameter(self.bias.detach().repeat_interleave(height * width))
        parts = SummedLinear(matrix, bias).deployed((values,))
        flat = DeployedLayer(Reshape(shape=(values,)), None, "flat")
        first, *rest = parts
        chain = [first._replace(inputs=("flat",)), *rest]
        chain[-1] = chain[-1]._replace(name="whole")
        return (flat, *chain, DeployedLayer(Reshape(shape=shape), ("whole",)))


def _symbols(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """V at half of the frequencies, [h, w / 2 + 1, c, rank]: as numbers of a correlation."""
    return torch.fft.rfft2(weight, s=size).conj().permute(2, 3, 0, 1)


class BroLinear(Layer):
    """W x + bias on flat inputs; weight V [n, rank], bias [n]."""

    kind = "bro-linear"
    one_lipschitz = True

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = parameter(weight), parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, _reflector(self.weight), self.bias)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        size, rank = self.weight.shape
        if shape != (size,) or not rank < size:
            raise ShapeError(
                f"{self.kind} with weight {tuple(self.weight.shape)} cannot take {shape}"
            )
        return shape

    def config(self) -> dict[str, Any]:
        return {}

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        weight = self.weight.detach()
        matrix = weight.new_empty(len(weight), len(weight))
        if not weight.is_meta:
            matrix = _reflector(weight.to(torch.float64)).to(weight)
        return SummedLinear(matrix, self.bias).deployed(*shapes)
