"""The affine maps there are: dense, convolution, elementwise, average pooling; and their fusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from models.layers.kinds import AvgPool2d
from workers.verification.clock import UNLIMITED, Clock
from workers.verification.graph.affine import Affine, Inner, Shape
from workers.verification.norms.dense import dense_norm
from workers.verification.norms.spectral import ConvGeometry, absolute_norm, conv_norm
from workers.verification.numerics import MANY, raised, up
from workers.verification.summation import FUSED

__all__ = ["Convolution", "Dense", "Diagonal", "Pooling"]

#: What ``entrywise`` makes of weights.
ENTRIES: dict[str, Callable[[Tensor], Tensor]] = {
    "squares": torch.square,
    "signed squares": lambda weight: weight * weight.abs(),
    "present": lambda weight: (weight != 0).to(weight),
}


@dataclass(frozen=True, eq=False)
class Dense(Affine):
    """A matrix W [out, in], float64, acting on the flattened input."""

    weight: Tensor = field(kw_only=True)

    def linear(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.cast("weight", x, lambda: self.weight).T

    def apply(self, x: Tensor) -> Tensor:
        bias = self.bias_like(x).expand(self.out_shape)
        return torch.addmm(bias, x.flatten(1), self.cast("weight", x, lambda: self.weight).T)

    def absolute(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.cast("absolute", x, self.weight.abs).T

    def weights(self) -> list[Tensor]:
        return [self.weight]

    def row_norms_square(self) -> Tensor:
        return raised(self.weight.square().sum(1), MANY)

    def entrywise(self, name: str, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.cast(name, x, lambda: ENTRIES[name](self.weight)).T

    def largest_column(self) -> float:
        return float(raised(self.weight.square().sum(0).max().sqrt(), MANY))

    def spectral(self, clock: Clock = UNLIMITED) -> float:
        return dense_norm(self.weight, clock)

    def scaled_output(self, other: Diagonal) -> Dense:
        """other after self, as one map."""
        return replace(
            self,
            weight=self.weight * other.scale.expand(self.out_shape)[:, None],
            **_after(self, other),
        )

    def scaled_input(self, other: Diagonal) -> Dense:
        """self after other, as one map."""
        return replace(
            self,
            weight=self.weight * other.scale.expand(other.out_shape).reshape(1, -1),
            **_before(self, other),
        )


@dataclass(frozen=True, eq=False)
class Convolution(Affine):
    """A convolution: weight [out, in / groups, h, w] float64 and its geometry."""

    weight: Tensor = field(kw_only=True)
    geometry: ConvGeometry = field(kw_only=True)

    def linear(self, x: Tensor) -> Tensor:
        return self.geometry.apply(x, self.cast("weight", x, lambda: self.weight))

    def apply(self, x: Tensor) -> Tensor:
        per_channel = self.bias.dim() == 3 and self.bias.shape[1:] == (1, 1)
        if not per_channel:
            return super().apply(x)
        bias = self.cast("channel bias", x, lambda: self.bias.flatten())
        return self.geometry.apply(x, self.cast("weight", x, lambda: self.weight), bias)

    def absolute(self, x: Tensor) -> Tensor:
        return self.geometry.apply(x, self.cast("absolute", x, self.weight.abs))

    def weights(self) -> list[Tensor]:
        return [self.weight]

    def row_norms_square(self) -> Tensor:
        ones = torch.ones(1, *self.in_shape, dtype=torch.float64)
        return raised(self.entrywise("squares", ones)[0], MANY)

    def entrywise(self, name: str, x: Tensor) -> Tensor:
        return self.geometry.apply(x, self.cast(name, x, lambda: ENTRIES[name](self.weight)))

    def largest_column(self) -> float:
        # A number meets a tap once at most, and with a stride those that are whole strides apart.
        parts = self.weight.unflatten(0, (self.geometry.groups, -1)).square().sum(1)
        height, width = (
            (torch.arange(taps) * step) % stride
            for taps, step, stride in zip(
                parts.shape[2:], self.geometry.dilation, self.geometry.stride, strict=True
            )
        )
        columns = [
            parts[:, :, height == row][:, :, :, width == column].sum((2, 3)).max()
            for row in height.unique()
            for column in width.unique()
        ]
        return float(raised(torch.stack(columns).max().sqrt(), MANY))

    def spectral(self, clock: Clock = UNLIMITED) -> float:
        return conv_norm(self.weight, self.geometry, clock)

    def scaled_output(self, other: Diagonal) -> Convolution | None:
        """other after self as one map, or None where the scale varies inside a channel."""
        scale = _per_channel(other.scale, self.out_shape)
        if scale is None:
            return None
        return replace(self, weight=self.weight * scale[:, None, None, None], **_after(self, other))

    def scaled_input(self, other: Diagonal) -> Convolution | None:
        """self after other as one map, or None where the scale varies inside a channel."""
        scale = _per_channel(other.scale, self.in_shape)
        if scale is None:
            return None
        groups = self.geometry.groups
        per_group = scale.reshape(groups, 1, -1, 1, 1)
        weight = self.weight.reshape(groups, -1, *self.weight.shape[1:]) * per_group
        return replace(self, weight=weight.reshape(self.weight.shape), **_before(self, other))


def _per_channel(scale: Tensor, shape: Shape) -> Tensor | None:
    full = scale.expand(shape).reshape(shape[0], -1)
    first = full[:, :1]
    return first[:, 0].clone() if bool((full == first).all()) else None


@dataclass(frozen=True, eq=False)
class Diagonal(Affine):
    """y = scale x + bias elementwise; scale float64, broadcastable to the shape."""

    scale: Tensor = field(kw_only=True)

    def linear(self, x: Tensor) -> Tensor:
        return x * self.cast("scale", x, lambda: self.scale)

    def absolute(self, x: Tensor) -> Tensor:
        return x * self.cast("absolute", x, self.scale.abs)

    def weights(self) -> list[Tensor]:
        return [self.scale]

    def row_norms_square(self) -> Tensor:
        return raised(self.scale.square(), MANY)

    def spectral(self, clock: Clock = UNLIMITED) -> float:
        return raised(float(self.scale.abs().max()))

    def absolute_norm(self, clock: Clock = UNLIMITED) -> float:
        return self.spectral(clock)

    def scaled_output(self, other: Diagonal) -> Diagonal:
        """other after self, as one map."""
        return replace(self, scale=self.scale * other.scale, **_after(self, other))


@dataclass(frozen=True, eq=False)
class Pooling(Affine):
    """Average pooling: every channel is mapped alike, so one channel gives the norm."""

    layer: AvgPool2d = field(kw_only=True)

    def linear(self, x: Tensor) -> Tensor:
        inverse = self.cast("inverse", x, self._inverse)
        return self.layer.window_sums(x) * inverse

    def absolute(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def _inverse(self) -> Tensor:
        cpu = torch.device("cpu")
        return 1.0 / self.layer.divisor(self.in_shape, dtype=torch.float64, device=cpu)

    def weights(self) -> list[Tensor]:
        return [self._inverse()]

    def row_norms_square(self) -> Tensor:
        inverse = self._inverse()
        ones = torch.ones(1, 1, *self.in_shape[1:], dtype=torch.float64)
        return raised((self.layer.window_sums(ones) * inverse.square())[0], MANY)

    def spectral(self, clock: Clock = UNLIMITED) -> float:
        # Rows overlap at most as absolute_norm's Collatz-Wielandt bound says; entries are >= 0.
        return self.absolute_norm(clock)

    def absolute_norm(self, clock: Clock = UNLIMITED) -> float:
        return absolute_norm(self.linear, (1, *self.in_shape[1:]), clock)


def _after(first: Affine, second: Diagonal) -> dict[str, Any]:
    """Fields of second o first that do not depend on W's form."""
    size, trees = second.scale.abs(), first.summation
    return {
        "bias": second.scale * first.bias + second.bias,
        "bias_magnitude": raised(size * first.bias_magnitude + second.bias_magnitude),
        # The second's shift is no leaf of the first's sums: it meets the factors beside them.
        "bias_square": raised(size.square() * first.leaf_squares),
        "terms": first.terms + second.terms + 1,
        # The fused weights are rounded too, each by itself, to float64.
        "summation": None if trees is None else trees.before(second.terms).after(FUSED),
        "inner": _between(first, second),
    }


def _before(second: Convolution | Dense, first: Diagonal) -> dict[str, Any]:
    """Fields of second o first: the inner bias goes through W (so it varies at padded borders)."""
    inner = first.bias.expand(first.out_shape)[None]
    magnitude = first.bias_magnitude.expand(first.out_shape)[None]
    # A leaf is a weight times what the first gives; its shift is a sum that was rounded here.
    leaves = raised(inner.abs()) + (up() - 1.0) * magnitude
    new, trees = second.entrywise("squares", leaves.square())[0], second.summation
    return {
        "in_shape": first.in_shape,
        "bias": second.linear(inner)[0] + second.bias,
        "bias_magnitude": raised(second.absolute(magnitude)[0] + second.bias_magnitude, MANY),
        # Both may be parts of one leaf, where the norms add up.
        "bias_square": raised((new.sqrt() + second.leaf_squares.sqrt()).square(), MANY),
        "terms": first.terms + second.terms + 1,
        "summation": None if trees is None else trees.after(first.terms + FUSED),
        "inner": _between(first, second),
    }


def _between(first: Affine, second: Affine) -> Inner:
    """What second o first holds in between: whatever either does, and first's own result."""
    gain, shift = first.largest_row_sum(), first.largest_bias()
    return Inner(
        raised(max(first.inner.gain, gain, second.inner.gain * gain)),
        raised(max(first.inner.shift, shift, second.inner.gain * shift + second.inner.shift)),
        raised(first.floor * second.largest_row_sum() + second.inner.lost),
    )
