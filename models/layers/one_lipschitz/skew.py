"""Skew orthogonal convolution (SOC; Singla and Feizi 2021, arXiv:2105.11417; 2022, 2211.08453).

The exponential of a skew convolution is orthogonal. Trained is its series of six terms; deployed is
a frozen chain of one plain convolution, quotients and sums, of a degree at which the series of a
map of norm at most 3.3 is exactly a contraction (8 or 12), or a matrix where that is cheaper.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import ModelError
from models.layers.affine import Conv2d, Divide, Shift
from models.layers.base import DeployedLayer, Layer, Shape, ShapeError, content_of, parameter
from models.layers.joins import Add, ReduceSum, Slice
from models.layers.one_lipschitz.skew_kernels import (
    dense_matrix,
    exact_scale,
    flattenings,
    over_norm,
    power_step,
    skew,
    taylor,
    trained_series,
)
from models.layers.partial_sums import (
    block_and_levels,
    groups_of,
    in_partial_sums,
)
from models.layers.shapes import Pad, Permute, Reshape

__all__ = ["DEGREES", "SkewConv2d"]

#: Degrees at which the truncated series is a contraction for every norm up to 3.3.
DEGREES = (8, 12)
#: Degree of the series in training.
TRAINED = 5
#: Values of an image up to which its matrix is deployed in place of the chain, and where the matrix
#: has at most twice the kernel's numbers (images of 2 x 2), which a chain reads eight times.
DENSE, DENSE_AND_SMALL = 1024, 4096


class SkewConv2d(Layer):
    """exp(J) x + bias, J the map of the kernel (weight - weight^T) / 2 over its norm's bound.

    weight [c, c, k, k], k odd, c the larger of the channels that go in and come out: channels of
    zeros are appended before, or the last ones cut off after. bias [out] or None. tall [c k] and
    flat [c]: vectors of the power steps that follow the two norms in training.
    """

    kind = "skew-conv2d"
    one_lipschitz = True

    def __init__(
        self,
        weight: Tensor,
        tall: Tensor,
        flat: Tensor,
        bias: Tensor | None = None,
        *,
        channels: int,
        out: int,
        degree: int = 8,
    ) -> None:
        super().__init__()
        self.weight = parameter(weight)
        self.bias = None if bias is None else parameter(bias)
        self.register_buffer("tall", tall.detach().clone())
        self.register_buffer("flat", flat.detach().clone())
        self.tall: Tensor
        self.flat: Tensor
        #: The content of the weight, and one over its norm.
        self._scaled: tuple[bytes, float] | None = None
        self.channels, self.out, self.degree = int(channels), int(out), int(degree)
        if self.degree not in DEGREES:
            raise ModelError(
                f"skew-conv2d of degree {degree}: only {DEGREES} are contractions",
                code="invalid_network",
            )

    def kernel(self) -> Tensor:
        """The skew kernel over the lesser norm of its flattenings, with a gradient.

        Where gradients are asked for by one power step for each norm; else by singular values.
        """
        if not self._learning():
            return self.frozen()
        # Norms are no place for half a precision.
        with torch.autocast(self.weight.device.type, enabled=False):
            with torch.no_grad():
                kernel = skew(self.weight)
                steps = [
                    power_step(matrix, vector)
                    for matrix, vector in zip(
                        flattenings(kernel), (self.tall, self.flat), strict=True
                    )
                ]
            return over_norm(self.weight, kernel, *steps)

    def _learning(self) -> bool:
        return torch.is_grad_enabled() and self.weight.requires_grad

    def forward(self, x: Tensor) -> Tensor:
        largest = self.weight.shape[0]
        if self.channels < largest:
            x = F.pad(x, (0, 0, 0, 0, 0, largest - self.channels))
        if self._learning():
            x = trained_series(x, self.kernel(), TRAINED)
        else:
            x = taylor(x, self.kernel(), self.degree)
        x = x[:, : self.out]
        return x if self.bias is None else x + self.bias[:, None, None]

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        largest, _, height, width = self.weight.shape
        square = tuple(self.weight.shape[:2]) == (max(self.channels, self.out),) * 2
        if not square or height % 2 == 0 or width % 2 == 0:
            raise ShapeError(
                f"{self.kind} needs an odd kernel of {max(self.channels, self.out)} channels, not "
                f"{tuple(self.weight.shape)}"
            )
        if self.tall.shape != (largest * height,) or self.flat.shape != (largest,):
            raise ShapeError(f"{self.kind}: vectors that do not fit {tuple(self.weight.shape)}")
        if len(shape) != 3 or shape[0] != self.channels:
            raise ShapeError(f"{self.kind} of {self.channels} channels cannot take {shape}")
        return (self.out, *shape[1:])

    def config(self) -> dict[str, Any]:
        return {"channels": self.channels, "out": self.out, "degree": self.degree}

    def frozen(self) -> Tensor:
        """The kernel as it is deployed: float32, exactly skew, scaled by its exact norms."""
        kernel = skew(self.weight.detach())
        if kernel.is_meta:
            return kernel
        # Singular values take long: once for each state of the weight.
        state = content_of(self.weight)
        if self._scaled is None or self._scaled[0] != state:
            self._scaled = (state, exact_scale(kernel))
        # One common factor keeps exact negatives.
        scale = torch.tensor(self._scaled[1], dtype=kernel.dtype, device=kernel.device)
        return kernel * scale

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        (shape,) = shapes
        largest, _, height, width = self.weight.shape
        if (height, width) == (1, 1) or shape[1:] == (1, 1):
            return self._matrix((1, 1), shape)
        places = shape[1] * shape[2]
        small = places**2 <= 2 * height * width
        if largest * places <= (DENSE_AND_SMALL if small else DENSE):
            return self._matrix(shape[1:], shape)
        return self._chain(shape)

    def _matrix(self, size: tuple[int, ...], shape: Shape) -> tuple[DeployedLayer, ...]:
        """The exponential itself: a 1 x 1 convolution, or one matrix for the whole image."""
        height, width = int(size[0]), int(size[1])
        places, kernel = height * width, self.frozen()
        if not kernel.is_meta:
            if places == 1:
                middle = (kernel.shape[2] // 2, kernel.shape[3] // 2)
                kernel = kernel[:, :, middle[0], middle[1]][:, :, None, None]
            matrix = dense_matrix(kernel, (height, width))
            matrix = matrix[: self.out * places, : self.channels * places]
            matrix = matrix.to(self.weight)
        else:
            matrix = kernel.new_empty(self.out * places, self.channels * places)
        bias = self.bias
        if places == 1:
            sizes = block_and_levels(self.channels, 1)
            return in_partial_sums(matrix, bias, tuple(shape[1:]), sizes)
        if bias is not None:
            bias = nn.Parameter(bias.detach().repeat_interleave(places))
        values = self.channels * places
        sizes = block_and_levels(values, 2)
        one_place = DeployedLayer(Reshape(shape=(values, 1, 1)), None, "values")
        first, *rest = in_partial_sums(matrix, bias, (), sizes)
        parts = [first._replace(inputs=("values",)), *rest]
        parts[-1] = parts[-1]._replace(name="matrix")
        image = DeployedLayer(Reshape(shape=(self.out, *shape[1:])), ("matrix",))
        return (one_place, *parts, image)

    def _chain(self, shape: Shape) -> tuple[DeployedLayer, ...]:
        """Horner's scheme: one convolution that stands there ``degree`` times, quotients, sums."""
        largest, _, height, width = self.weight.shape
        parts: list[DeployedLayer] = []
        source: int | str = 0
        if self.channels < largest:
            # Zeros behind the last channel: moves alone, so that nothing rounds.
            more = Pad(padding=(0, 0, 0, largest - self.channels))
            parts += [
                DeployedLayer(Permute(axes=(1, 2, 0)), None, "last"),
                DeployedLayer(more, ("last",), "wider"),
                DeployedLayer(Permute(axes=(2, 0, 1)), ("wider",), "widened"),
            ]
            source = "widened"
        # In groups of input channels, whose results are summed: few roundings per output.
        groups = groups_of(largest, height * width, shape[1] * shape[2])
        kernel = self.frozen().reshape(largest, groups, -1, height, width).transpose(0, 1)
        kernel = kernel.reshape(groups * largest, -1, height, width)
        conv = Conv2d(kernel, padding=(height // 2, width // 2), groups=groups)
        apart, together = Reshape(shape=(groups, largest, *shape[1:])), ReduceSum(axes=(0,))
        at = source
        for divisor in range(self.degree, 0, -1):
            term = f"map{divisor}"
            if groups == 1:
                parts.append(DeployedLayer(conv, (at,), term))
            else:
                parts += [
                    DeployedLayer(conv, (at,), f"groups{divisor}"),
                    DeployedLayer(apart, (f"groups{divisor}",), f"apart{divisor}"),
                    DeployedLayer(together, (f"apart{divisor}",), term),
                ]
            if divisor > 1:
                quotient = Divide(torch.tensor(float(divisor), dtype=self.weight.dtype))
                parts.append(DeployedLayer(quotient, (term,), f"term{divisor}"))
                term = f"term{divisor}"
            parts.append(DeployedLayer(Add(), (source, term), f"sum{divisor}"))
            at = f"sum{divisor}"
        if self.out < largest:
            parts.append(DeployedLayer(Slice(axis=0, start=0, stop=self.out), (at,), "narrowed"))
            at = "narrowed"
        if self.bias is not None:
            parts.append(DeployedLayer(Shift(self.bias[:, None, None]), (at,), "shifted"))
        last = parts[-1]
        return (*parts[:-1], DeployedLayer(last.layer, last.inputs))
