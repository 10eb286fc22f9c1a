"""The layer that each kind of row in a layer list stands for, its weights on torch's meta device.

One function and one row in ``KINDS`` per kind; nothing takes memory in the size of the weights
before the sizes are checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.architectures.layer_rows import LayerRow
from models.architectures.lipschitz_makers import LIPSCHITZ_KINDS, MAX_PARAMETERS
from models.errors import ModelError
from models.layers.activations import (
    Abs,
    AtLeast,
    AtMost,
    Clip,
    MaxMin,
    ReLUTheta,
    Sigmoid,
    Softplus,
    Tanh,
)
from models.layers.curves import (
    CELU,
    ELU,
    GELU,
    GELU_FORMS,
    LARGEST_FACTOR,
    SELU,
    Atan,
    Cos,
    HardSwish,
    Mish,
    Power,
    SiLU,
    Sin,
    Softsign,
)
from models.layers.joins import Concat, Maximum, Minimum, Product, ReduceMean, ReduceSum, Slice
from models.layers.kinds import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Layer,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Normalize,
    ReLU,
    Reshape,
    Shape,
)
from models.layers.one_lipschitz import (
    AbsShift,
    Householder,
    NormalizedHead,
    OrthogonalChannels,
    PadChannels,
    PairMax,
    ProjectionPool,
    SkewConv2d,
    SpaceToDepth,
    SummedLinear,
)
from models.layers.one_lipschitz.pairs import ORDERS
from models.layers.one_lipschitz.projection import MAX_FOLDS
from models.layers.one_lipschitz.skew import DEGREES
from models.layers.reparametrized import (
    NormalizedLinear,
    OrthogonalConv2d,
    OrthogonalLinear,
    ResidualConv2d,
    ResidualOrthogonalLinear,
)

__all__ = ["KINDS", "MAX_PARAMETERS", "THETA"]

#: Initial thresholds of ReLU-theta (Local-Lip, Huang et al. 2021: 1 or 2).
THETA = 1.0


def _meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _image(row: LayerRow, shape: Shape) -> Shape:
    if len(shape) != 3:
        row.refuse(f"needs an input [channels, h, w], not {shape}")
    return shape


def _afford(row: LayerRow, count: int) -> None:
    if count > MAX_PARAMETERS:
        raise ModelError(f"{row.label} has {count} parameters: too many", code="model_too_large")


def _conv2d(row: LayerRow, shape: Shape) -> Layer:
    channels = _image(row, shape)[0]
    out, groups = row.integer("out"), row.integer("groups", 1)
    kernel_h, kernel_w = row.pair("kernel")
    if channels % groups or out % groups:
        row.refuse(f"has {groups} groups, which do not divide {channels} and {out} channels")
    _afford(row, out * (channels // groups) * kernel_h * kernel_w)
    return Conv2d(
        _meta(out, channels // groups, kernel_h, kernel_w),
        _meta(out) if row.boolean("bias", True) else None,
        stride=row.pair("stride", 1),
        padding=row.padding(),
        dilation=row.pair("dilation", 1),
        groups=groups,
    )


def _orthogonal_conv2d(row: LayerRow, shape: Shape) -> Layer:
    channels, out, (height, width) = _image(row, shape)[0], row.integer("out"), row.pair("kernel")
    _afford(row, out * channels * height * width)
    weight, bias = _meta(out, channels, height, width), _meta(out)
    return OrthogonalConv2d(weight, bias, stride=(height, width), padding=row.padding())


def _orthogonal_channels(row: LayerRow, shape: Shape) -> Layer:
    channels = _image(row, shape)[0]
    _afford(row, channels * channels)
    return OrthogonalChannels(_meta(channels, channels, 1, 1), _meta(channels))


def _skew_conv2d(row: LayerRow, shape: Shape) -> Layer:
    channels, out = _image(row, shape)[0], row.integer("out")
    height, width = row.pair("kernel", 3)
    largest = max(channels, out)
    if height % 2 == 0 or width % 2 == 0:
        row.refuse(f"needs an odd kernel, not {(height, width)}")
    _afford(row, largest * largest * height * width)
    degree = row.integer("degree", 8)
    if degree not in DEGREES:
        row.refuse(f"has the degree {degree}: only {DEGREES} are contractions")
    return SkewConv2d(
        _meta(largest, largest, height, width),
        _meta(largest * height),
        _meta(largest),
        _meta(out) if row.boolean("bias", True) else None,
        channels=channels,
        out=out,
        degree=degree,
    )


def _householder(row: LayerRow, shape: Shape) -> Layer:
    order = row.integer("order", 1)
    if shape[0] % 2 or order not in ORDERS:
        row.refuse(f"takes an even number of channels, and an order of {ORDERS}, not {order}")
    return Householder(_meta(order, shape[0] // 2))


def _projection_pool(row: LayerRow, shape: Shape) -> Layer:
    if shape[0] % 2:
        row.refuse(f"pairs channels: {shape} has an odd number of them")
    folds = row.integer("folds", 3, maximum=MAX_FOLDS)
    return ProjectionPool(_meta(shape[0] // 2), folds=folds)


def _residual_conv2d(row: LayerRow, shape: Shape) -> Layer:
    channels, (height, width) = _image(row, shape)[0], row.pair("kernel", 3)
    _afford(row, channels * channels * height * width)
    return ResidualConv2d(
        _meta(channels, channels, height, width),
        _meta(channels, 1, 1, 1),
        _meta(channels),
        scale=row.number("scale", 1.0, 1e-3, 1e3),
        padding=(height // 2, width // 2),
    )


def _linear(row: LayerRow, shape: Shape, kind: type[Linear] = Linear) -> Layer:
    if len(shape) != 1:
        row.refuse(f"needs a flat input, not {shape}", 'put {"kind": "flatten"} before it')
    out = row.integer("out")
    _afford(row, out * shape[0])
    return kind(_meta(out, shape[0]), _meta(out) if row.boolean("bias", True) else None)


def _residual_linear(row: LayerRow, shape: Shape) -> Layer:
    if len(shape) != 1:
        row.refuse(f"needs a flat input, not {shape}", 'put {"kind": "flatten"} before it')
    size = shape[0]
    _afford(row, size * size)
    scale = row.number("scale", 1.0, 1e-3, 1e3)
    return ResidualOrthogonalLinear(_meta(size, size), _meta(size, 1), _meta(size), scale=scale)


def _limit(kind: type[AtLeast | AtMost]) -> Callable[[LayerRow, Shape], Layer]:
    """A trained threshold per unit; with ``half`` only for that half of the channels."""

    def maker(row: LayerRow, shape: Shape) -> Layer:
        row.number("value", 0.0, -1e6, 1e6)
        if row.get("half") not in (None, "first", "second") or (row.get("half") and shape[0] % 2):
            row.refuse('takes "half": "first" or "second" of an even number of channels')
        return kind(_meta(*shape))

    return maker


def _relu_theta(row: LayerRow, shape: Shape) -> Layer:
    row.number("value", THETA, 0.0, 1e6)
    return ReLUTheta(_meta(*shape))


def _batch_norm(row: LayerRow, shape: Shape) -> Layer:
    eps = row.number("eps", 1e-5, 1e-12, 1.0)
    return BatchNorm(*(_meta(shape[0]) for _ in range(4)), eps=eps)


def _max_pool(row: LayerRow, shape: Shape) -> Layer:
    kernel = row.pair("kernel")
    padding = row.padding()
    if any(2 * p > k for p, k in zip(padding, (*kernel, *kernel), strict=True)):
        row.refuse("has a padding of more than half its window")
    return MaxPool2d(
        kernel=kernel,
        stride=row.pair("stride", list(kernel)),
        padding=padding,
        dilation=(1, 1),
    )


def _avg_pool(row: LayerRow, shape: Shape) -> Layer:
    kernel = row.pair("kernel")
    padding = row.padding()
    if any(2 * p > k for p, k in zip(padding, (*kernel, *kernel), strict=True)):
        row.refuse("has a padding of more than half its window")
    return AvgPool2d(
        kernel=kernel,
        stride=row.pair("stride", list(kernel)),
        padding=padding,
        count_include_pad=row.boolean("count_include_pad", True),
    )


def _global_avg_pool(row: LayerRow, shape: Shape) -> Layer:
    _, height, width = _image(row, shape)
    return AvgPool2d(kernel=(height, width), stride=1)


def _normalize(row: LayerRow, shape: Shape) -> Layer:
    values = []
    for key in ("mean", "std"):
        given = row.get(key)
        if not isinstance(given, list | tuple) or len(given) not in (1, shape[0]):
            row.refuse(f'needs "{key}", one number per channel')
        if any(type(v) not in (int, float) or not math.isfinite(v) for v in given):
            row.refuse(f'needs "{key}", finite numbers')
        values.append(torch.tensor([float(v) for v in given]))
    mean, std = values
    finite = torch.isfinite(mean).all() and torch.isfinite(std).all()
    if len(mean) != len(std) or not bool(finite and (std > 0).all()):
        row.refuse('needs "mean" and "std" of one length, every std > 0')
    return Normalize(mean, std)


def _clip(row: LayerRow, shape: Shape) -> Layer:
    low, high = (
        None if row.get(key) is None else row.number(key, 0.0, -1e30, 1e30)
        for key in ("low", "high")
    )
    if low is None and high is None:
        row.refuse('needs "low", "high" or both')
    if low is not None and high is not None and low > high:
        row.refuse(f'has "low" {low} above "high" {high}')
    return Clip(low=low, high=high)


def _slice(row: LayerRow, shape: Shape) -> Layer:
    axis = row.integer("axis", 0, minimum=0)
    if axis >= len(shape):
        row.refuse(f'needs "axis", one of {shape}')
    return Slice(
        axis=axis,
        start=row.integer("start", 0, minimum=0),
        stop=row.integer("stop", shape[axis]),
        step=row.integer("step", 1),
    )


def _reduction(kind: type[ReduceMean | ReduceSum]) -> Callable[[LayerRow, Shape], Layer]:
    def maker(row: LayerRow, shape: Shape) -> Layer:
        axes = row.get("axes")
        if not isinstance(axes, list | tuple) or any(type(axis) is not int for axis in axes):
            row.refuse('needs "axes", a list of integers')
        return kind(axes=axes, keepdims=row.boolean("keepdims", False))

    return maker


def _exponential(kind: type[ELU | CELU]) -> Callable[[LayerRow, Shape], Layer]:
    def maker(row: LayerRow, shape: Shape) -> Layer:
        return kind(alpha=row.number("alpha", 1.0, 1.0 / LARGEST_FACTOR, LARGEST_FACTOR))

    return maker


def _gelu(row: LayerRow, shape: Shape) -> Layer:
    return GELU(approximate=row.choice("approximate", "none", dict.fromkeys(GELU_FORMS)))


#: Kinds of layers in a list: a new one is one function and one row here.
KINDS: dict[str, Callable[[LayerRow, Shape], Layer]] = {
    "abs": lambda row, shape: Abs(),
    "abs-shift": lambda row, shape: AbsShift(),
    "add": lambda row, shape: Add(),
    "at-least": _limit(AtLeast),
    "at-most": _limit(AtMost),
    "atan": lambda row, shape: Atan(),
    "avg-pool2d": _avg_pool,
    "batch-norm": _batch_norm,
    "celu": _exponential(CELU),
    "clip": _clip,
    "concat": lambda row, shape: Concat(axis=row.integer("axis", 0, minimum=0)),
    "conv2d": _conv2d,
    "cos": lambda row, shape: Cos(),
    "elu": _exponential(ELU),
    "flatten": lambda row, shape: Reshape(shape=(math.prod(shape),)),
    "householder": _householder,
    "gelu": _gelu,
    "global-avg-pool": _global_avg_pool,
    "hard-swish": lambda row, shape: HardSwish(),
    "leaky-relu": lambda row, shape: LeakyReLU(slope=row.number("slope", 0.01, 0.0, 1.0)),
    "linear": _linear,
    "max-pool2d": _max_pool,
    "maximum": lambda row, shape: Maximum(),
    "maxmin": lambda row, shape: MaxMin(),
    "minimum": lambda row, shape: Minimum(),
    "mish": lambda row, shape: Mish(),
    "normalize": _normalize,
    "normalized-head": lambda row, shape: _linear(row, shape, NormalizedHead),
    "normalized-linear": lambda row, shape: _linear(row, shape, NormalizedLinear),
    "orthogonal-channels": _orthogonal_channels,
    "orthogonal-conv2d": _orthogonal_conv2d,
    "orthogonal-linear": lambda row, shape: _linear(row, shape, OrthogonalLinear),
    "pad-channels": lambda row, shape: PadChannels(channels=row.integer("channels")),
    "pair-max": lambda row, shape: PairMax(),
    "power": lambda row, shape: Power(exponent=row.integer("exponent", 2, minimum=2, maximum=3)),
    "product": lambda row, shape: Product(),
    "projection-pool": _projection_pool,
    "reduce-mean": _reduction(ReduceMean),
    "reduce-sum": _reduction(ReduceSum),
    "relu": lambda row, shape: ReLU(),
    "relu-theta": _relu_theta,
    "relu6": lambda row, shape: Clip(low=0.0, high=6.0),
    "residual": lambda row, shape: Add(),
    "residual-conv2d": _residual_conv2d,
    "residual-orthogonal-linear": _residual_linear,
    "selu": lambda row, shape: SELU(),
    "sigmoid": lambda row, shape: Sigmoid(),
    "silu": lambda row, shape: SiLU(),
    "skew-conv2d": _skew_conv2d,
    "slice": _slice,
    "space-to-depth": lambda row, shape: SpaceToDepth(block=row.integer("block", 2, maximum=64)),
    "softplus": lambda row, shape: Softplus(beta=row.number("beta", 1.0, 1e-3, 1e3)),
    "sin": lambda row, shape: Sin(),
    "softsign": lambda row, shape: Softsign(),
    "summed-linear": lambda row, shape: _linear(row, shape, SummedLinear),
    "tanh": lambda row, shape: Tanh(),
    **LIPSCHITZ_KINDS,
}
