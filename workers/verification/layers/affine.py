"""Affine layers as affine maps with exact parameters, and what their deployed evaluation rounds.

Bounds see the map (``graph.affine``), which has rules of its own; a new affine layer is one
function.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.joins import ReduceMean, ReduceSum
from models.layers.kinds import BatchNorm, Conv2d, Divide, Linear, Multiply, Normalize, Shift
from models.layers.normalization import Centre
from workers.verification.graph.affine import FLOAT32_SAFE, Affine, Inner
from workers.verification.graph.affine_maps import Convolution, Dense, Diagonal
from workers.verification.graph.graph_step import UnsupportedLayer
from workers.verification.graph.reductions import Centering, Reduction
from workers.verification.layers.rules import LayerRules
from workers.verification.norms.spectral import ConvGeometry
from workers.verification.numerics import min_normal
from workers.verification.rounding import FLOAT32_MAX, unit_roundoff
from workers.verification.summation import Summation

__all__ = ["RULES"]


def _float64(tensor: Tensor) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float64)


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


#: Where a convolution may stand for a Resize (``_may_interpolate``): products of one output, and
#: roundings of each of them.
MIXED, INTERPOLATED = 4, 4.0


def _trees(products: int, bias: Tensor, ahead: float = 1.0) -> Summation:
    """Products, and a bias where one is not 0 (to add 0 rounds nothing), each product rounded."""
    return Summation((products + float(bool(bias.any())),), ahead)


def _may_interpolate(weight: Tensor, groups: int) -> bool:
    """Whether this may be a linear Resize, which the importer takes for such a matrix.

    ONNX Runtime adds four products of three factors, two of them constants whose product is exact
    (along one axis two products count): at most three roundings of each product before it is added,
    and a tree of four. What stands beside them in a matrix is 0, and rounds nothing. It has more
    than four columns: smaller images are refused.
    """
    alone = groups == 1 and tuple(weight.shape[2:]) == (1, 1) and weight.shape[1] > MIXED
    return alone and int((weight != 0.0).flatten(1).sum(1).max()) <= MIXED


def _conv2d(layer: Conv2d, shape: tuple[int, ...]) -> Affine:
    bias = _zero() if layer.bias is None else _float64(layer.bias)[:, None, None]
    weight = _float64(layer.weight)
    geometry = ConvGeometry(
        (shape[1], shape[2]), layer.stride, layer.padding, layer.dilation, layer.groups
    )
    products, ahead = weight[0].numel(), 1.0
    if _may_interpolate(weight, layer.groups):
        products, ahead = MIXED, INTERPOLATED
    trees = _trees(products, bias, ahead)
    out = layer.output_shape(shape)
    return Convolution(
        shape,
        out,
        bias,
        bias.abs(),
        products + 1 + ahead,
        weight=weight,
        geometry=geometry,
        summation=trees,
    )


def _linear(layer: Linear, shape: tuple[int, ...]) -> Affine:
    bias = _zero() if layer.bias is None else _float64(layer.bias)
    weight = _float64(layer.weight)
    out, count = layer.output_shape(shape), weight.shape[1]
    trees = _trees(count, bias)
    return Dense(shape, out, bias, bias.abs(), count + 2, weight=weight, summation=trees)


def _diagonal(
    shape: tuple[int, ...], scale: Tensor, shift: Tensor, magnitude: Tensor, terms: float
) -> Affine:
    return Diagonal(shape, shape, shift, magnitude, terms, scale=scale)


def _multiply(layer: Multiply, shape: tuple[int, ...]) -> Affine:
    return _diagonal(shape, _float64(layer.value), _zero(), _zero(), 2)


def _divide(layer: Divide, shape: tuple[int, ...]) -> Affine:
    # One correctly rounded division; two more steps allow a multiplication by the reciprocal.
    scale = 1.0 / _float64(layer.value)
    return _diagonal(shape, scale, _zero(), _zero(), 4 + _constant_terms(scale))


def _shift(layer: Shift, shape: tuple[int, ...]) -> Affine:
    value = _float64(layer.value)
    return _diagonal(shape, torch.ones((), dtype=torch.float64), value, value.abs(), 2)


def _normalize(layer: Normalize, shape: tuple[int, ...]) -> Affine:
    rank = len(shape)
    mean = layer.shaped(_float64(layer.mean), rank)
    scale = 1.0 / layer.shaped(_float64(layer.std), rank)
    shift = -mean * scale
    # x - mean may overflow where the quotient does not.
    inner = Inner(1.0, float(mean.abs().max()))
    terms = 6 + _constant_terms(scale)
    return Diagonal(shape, shape, shift, shift.abs(), terms, scale=scale, inner=inner)


def _batch_norm(layer: BatchNorm, shape: tuple[int, ...]) -> Affine:
    ones = [1] * (len(shape) - 1)
    variance = _float64(layer.var)
    if bool((variance < 0).any()):
        raise UnsupportedLayer("batch norm with a negative variance")
    root = torch.sqrt(variance + layer.eps)
    scale = (_float64(layer.weight) / root).reshape(-1, *ones)
    mean = _float64(layer.mean).reshape(-1, *ones)
    bias = _float64(layer.bias).reshape(-1, *ones)
    magnitude = (mean * scale).abs() + bias.abs()
    # Scale and shift are computed at run time: var + eps, root, reciprocal, products, sum.
    terms = 10 + _constant_terms(scale, 1.0 / root, mean * scale)
    return _diagonal(shape, scale, bias - mean * scale, magnitude, terms)


def _reduction(layer: ReduceSum | ReduceMean, shape: tuple[int, ...]) -> Affine:
    axes = tuple(layer.batched_axes())
    count = math.prod(shape[axis - 1] for axis in axes)
    # The deployed mean may divide by n or multiply by a rounded 1 / n, axis after axis.
    scale = 1.0 / count if isinstance(layer, ReduceMean) else 1.0
    out = layer.output_shape(shape) or (1,)
    # A mean's sum is held before it is divided.
    inner = Inner(float(count))
    return Reduction(
        shape,
        out,
        _zero(),
        _zero(),
        count + 4,
        axes=axes,
        scale=scale,
        inner=inner,
        summation=Summation((float(count),), ahead=5.0),
    )


def _centre(layer: Centre, shape: tuple[int, ...]) -> Affine:
    """The mean of n numbers by any of three ways, and a difference (|x - m| <= |W| |x|).

    A mean as a sum meets n + 2 roundings. One that is updated, m <- m + (x - m) / k, is off by at
    most (n + 3 log n + 6) u times the mean of |x|: each step rounds by u (|m| + 3 |x - m| / k),
    which is k / n of that in the end, and k |m| is at most the sum of the first k |x|. Means of
    parts that are joined are off by less: their parts are shorter. What is left pays for the
    difference, or, for n >= 2, for u |x| + 3 u |m| of two products that are subtracted in its place
    (``layers.smooth.standardize``): it is over 5.9 u times the mean of |x|, which for n = 2 is at
    least |x| / 2, and for n > 2 there are over 6 u |x| beside.
    """
    axes = tuple(layer.batched_axes())
    count = math.prod(shape[axis - 1] for axis in axes)
    terms = count + 4.0 * math.log2(count) + 10.0
    # The sum is held before it is divided.
    inner = Inner(float(count))
    return Centering(shape, shape, _zero(), _zero(), terms, axes=axes, inner=inner)


def _constant_terms(*scales: Tensor) -> float:
    """Extra rounding steps that cover a scale computed at run time near the denormal range."""
    terms = 0.0
    for scale in scales:
        size = scale.abs()
        size = size[size > 0]
        if size.numel():
            smallest = float(size.min())
            if smallest < FLOAT32_SAFE[0]:
                # A rounding there may cost as much as the least normal float32, twice over.
                terms += 2 * min_normal(torch.float32) / smallest / unit_roundoff(torch.float32)
            if not float(size.max()) < FLOAT32_MAX:
                return math.inf
    return terms


RULES: dict[type[Layer], LayerRules] = {
    Conv2d: LayerRules(affine=_conv2d),
    Linear: LayerRules(affine=_linear),
    Multiply: LayerRules(affine=_multiply),
    Divide: LayerRules(affine=_divide),
    Shift: LayerRules(affine=_shift),
    Normalize: LayerRules(affine=_normalize),
    BatchNorm: LayerRules(affine=_batch_norm),
    ReduceSum: LayerRules(affine=_reduction),
    ReduceMean: LayerRules(affine=_reduction),
    Centre: LayerRules(affine=_centre),
}
