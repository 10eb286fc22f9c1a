"""Activations: rectified, clipped, s-shaped and sorting ones, the absolute value, and steps."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import ModelError
from models.layers.affine import Divide, Multiply
from models.layers.base import (
    ConstantLayer,
    DeployedLayer,
    Layer,
    Shape,
    ShapeError,
    as_float32,
    parameter,
    require_broadcast,
)

__all__ = [
    "STEPS",
    "Abs",
    "AtLeast",
    "AtMost",
    "Ceil",
    "Clip",
    "Floor",
    "LeakyReLU",
    "MaxMin",
    "PReLU",
    "ReLU",
    "ReLUTheta",
    "Round",
    "Sigmoid",
    "Sign",
    "Softplus",
    "Step",
    "Tanh",
]


class Abs(Layer):
    """|x| on the first ``channels`` of the first axis, the others as they are; None: on all."""

    kind = "abs"
    one_lipschitz = True

    def __init__(self, *, channels: int | None = None) -> None:
        super().__init__()
        self.channels = None if channels is None else int(channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.channels is None:
            return x.abs()
        return torch.cat([x[:, : self.channels].abs(), x[:, self.channels :]], dim=1)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if self.channels is not None and not (shape and 0 < self.channels < shape[0]):
            raise ShapeError(f"abs on {self.channels} channels of an input of shape {shape}")
        return shape

    def config(self) -> dict[str, Any]:
        return {"channels": self.channels}


class ReLU(Layer):
    """max(x, 0), elementwise."""

    kind = "relu"

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class LeakyReLU(Layer):
    """x where x >= 0, slope * x elsewhere; 0 <= slope <= 1."""

    kind = "leaky-relu"

    def __init__(self, *, slope: float = 0.01) -> None:
        super().__init__()
        self.slope = as_float32(slope)
        if not 0.0 <= self.slope <= 1.0:
            raise ModelError(
                f"leaky-relu with slope {slope}: only 0 to 1 is supported", code="invalid_network"
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope)

    def config(self) -> dict[str, Any]:
        return {"slope": self.slope}


class PReLU(Layer):
    """x where x >= 0, slope * x elsewhere, with slopes from 0 to 1 that broadcast to the input."""

    kind = "prelu"

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.slope = parameter(slope)
        if not bool(((slope >= 0.0) & (slope <= 1.0)).all()):
            raise ModelError("prelu: only slopes from 0 to 1", code="invalid_network")

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, x, x * self.slope.to(x.dtype))

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        require_broadcast(self.kind, self.slope, shape)
        return shape


class Clip(Layer):
    """min(max(x, low), high), elementwise; None stands for no bound on that side.

    Bounds are rounded to float32, as they are deployed. Raises ModelError where they are NaN,
    infinite or low > high.
    """

    kind = "clip"

    def __init__(self, *, low: float | None = None, high: float | None = None) -> None:
        super().__init__()
        self.low, self.high = _float32(low), _float32(high)
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ModelError(
                f"clip: low = {self.low} exceeds high = {self.high}", code="invalid_network"
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.low is None and self.high is None:
            return x
        return torch.clamp(x, self.low, self.high)

    def config(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}


def _float32(value: float | None) -> float | None:
    if value is None:
        return None
    rounded = torch.tensor(float(value), dtype=torch.float32).item()
    if not math.isfinite(rounded):
        raise ModelError(f"clip: a bound of {value}", code="invalid_network")
    return rounded


class Sigmoid(Layer):
    """1 / (1 + exp(-x)), elementwise.

    Deployed, it is a rational approximation: ONNX Runtime 1.31 on x86 is off by up to 1.7e-7 and
    not monotone (every 53rd float32 number was tried).
    """

    kind = "sigmoid"

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


class Tanh(Layer):
    """tanh(x), elementwise.

    Deployed, it is a rational approximation: ONNX Runtime 1.31 on x86 is off by up to 3.1e-7, not
    monotone, and reaches 1 + 2.4e-7 (every 53rd float32 number was tried).
    """

    kind = "tanh"

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class Softplus(Layer):
    """log(1 + exp(beta x)) / beta, elementwise; beta > 0.

    Deployed, it is the operator with beta = 1 between a multiplication and a division. ONNX Runtime
    1.31 on x86 computes max(x, 0) + log(1 + exp(-|x|)) in float32 and is off by up to 1.4e-7 beside
    half a rounding of x (every 509th float32 number was tried).
    """

    kind = "softplus"

    def __init__(self, *, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = as_float32(beta)
        if not (0.0 < self.beta < math.inf):
            raise ModelError(f"softplus with beta {beta}: not positive", code="invalid_network")

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x, self.beta, threshold=40.0)

    def config(self) -> dict[str, Any]:
        return {} if self.beta == 1.0 else {"beta": self.beta}

    def deployed(self, *shapes: Shape) -> tuple[DeployedLayer, ...]:
        if self.beta == 1.0:
            return super().deployed(*shapes)
        beta = torch.tensor(self.beta)
        return (
            DeployedLayer(Multiply(beta), name="scaled"),
            DeployedLayer(Softplus(), ("scaled",), "plain"),
            DeployedLayer(Divide(beta), ("plain",)),
        )


class AtLeast(ConstantLayer):
    """max(x, value), elementwise (value broadcasts to the input's shape)."""

    kind = "at-least"

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.value)


class AtMost(ConstantLayer):
    """min(x, value), elementwise (value broadcasts to the input's shape)."""

    kind = "at-most"

    def forward(self, x: Tensor) -> Tensor:
        return torch.minimum(x, self.value)


class ReLUTheta(Layer):
    """min(max(x, 0), theta), a threshold per unit; theta >= 0 broadcasts to the input's shape.

    Local-Lip (Huang et al. 2021), section 4; training keeps theta >= 0.
    """

    kind = "relu-theta"

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = parameter(theta)

    def forward(self, x: Tensor) -> Tensor:
        return torch.minimum(F.relu(x), self.theta)

    def project(self) -> None:
        with torch.no_grad():
            self.theta.clamp_(min=0.0)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        require_broadcast(self.kind, self.theta, shape)
        return shape


class MaxMin(Layer):
    """GroupSort-2 on channels paired (c, c + C/2): maxima in the first half, minima in the second.

    Channels are the first axis after the batch (features of a flat input).
    """

    kind = "maxmin"

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=1)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if not shape or shape[0] % 2:
            raise ShapeError(f"maxmin pairs channels: {shape} has an odd number of them")
        return shape


class _StraightThrough(torch.autograd.Function):
    """A step as it is, and a gradient for it: a guide of attacks, never of a proof."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stepped: Tensor, scaled: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scaled = scaled
        return stepped

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if not ctx.scaled:
            return gradient, None, None
        (x,) = ctx.saved_tensors
        size = x.abs()
        typical = size.flatten(1).mean(1).reshape(-1, *([1] * (x.dim() - 1))).clamp_min(1e-30)
        return gradient * (typical / (typical + size)).square() / typical, None, None


class Step(Layer):
    """A function that is constant between its jumps, and never falls; elementwise.

    Its gradient is a straight-through one (Bengio et al. 2013), so that attacks find a way.
    """

    #: Whether the gradient is that of x / (typical |x| + |x|), in the place of that of x.
    scaled: ClassVar[bool] = False

    def stepped(self, x: Tensor) -> Tensor:
        """The value, in x's dtype: exact. NaN stays NaN."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        stepped = self.stepped(x)
        if not x.requires_grad:
            return stepped
        result: Tensor = _StraightThrough.apply(x, stepped.detach(), self.scaled)
        return result


class Sign(Step):
    """-1 below 0, 1 above 0, ``at_zero`` (-1, 0 or 1) at 0 of either sign."""

    kind = "sign"
    scaled = True

    def __init__(self, *, at_zero: int = 0) -> None:
        super().__init__()
        self.at_zero = int(at_zero)
        if self.at_zero not in (-1, 0, 1):
            raise ModelError(f"sign with {at_zero} at 0: only -1, 0 and 1", code="invalid_network")

    def stepped(self, x: Tensor) -> Tensor:
        # torch has 0 for NaN.
        sign = torch.where(x.isnan(), x, torch.sign(x))
        return torch.where(x == 0, float(self.at_zero), sign) if self.at_zero else sign

    def config(self) -> dict[str, Any]:
        return {} if self.at_zero == 0 else {"at_zero": self.at_zero}


class Floor(Step):
    """The largest whole number that is not above x."""

    kind = "floor"

    def stepped(self, x: Tensor) -> Tensor:
        return torch.floor(x)


class Ceil(Step):
    """The smallest whole number that is not below x."""

    kind = "ceil"

    def stepped(self, x: Tensor) -> Tensor:
        return torch.ceil(x)


class Round(Step):
    """The nearest whole number; of two the even one."""

    kind = "round"

    def stepped(self, x: Tensor) -> Tensor:
        return torch.round(x)


STEPS: tuple[type[Step], ...] = (Sign, Floor, Ceil, Round)
