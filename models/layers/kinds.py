"""All layers of the network graph, by name.

A layer is the operator as it is DEPLOYED (one layer, one float32 operator or one fused affine
operator such as MatMul + Add); verification reads the layer's exact parameters, training
differentiates its ``forward``. Layers know nothing of bounds. Shapes never include the batch.
"""

from __future__ import annotations

from models.layers.activations import (
    STEPS,
    Abs,
    AtLeast,
    AtMost,
    Clip,
    LeakyReLU,
    MaxMin,
    PReLU,
    ReLU,
    ReLUTheta,
    Sigmoid,
    Softplus,
    Tanh,
)
from models.layers.affine import Conv2d, Divide, Linear, Multiply, Shift
from models.layers.base import Layer, Shape, ShapeError
from models.layers.curves import CURVED, STEEP
from models.layers.euclidean import L2Pool2d, Sort
from models.layers.joins import Add, Concat, Maximum, Minimum, Product, ReduceMean, ReduceSum, Slice
from models.layers.normalization import (
    BatchNorm,
    Centre,
    LocalResponse,
    Normalize,
    Softmax,
    Standardize,
)
from models.layers.one_lipschitz import ONE_LIPSCHITZ, InexactPairs
from models.layers.pooling import AvgPool2d, MaxPool2d
from models.layers.reparametrized import (
    NormalizedLinear,
    OrthogonalConv2d,
    OrthogonalLinear,
    ResidualConv2d,
    ResidualOrthogonalLinear,
)
from models.layers.shapes import Expand, Gather, Pad, Permute, Reshape

__all__ = [
    "LAYER_KINDS",
    "Abs",
    "Add",
    "AvgPool2d",
    "BatchNorm",
    "Conv2d",
    "Divide",
    "Expand",
    "Gather",
    "Layer",
    "LeakyReLU",
    "Linear",
    "MaxPool2d",
    "Multiply",
    "Normalize",
    "PReLU",
    "Pad",
    "Permute",
    "ReLU",
    "Reshape",
    "Shape",
    "ShapeError",
    "Shift",
]

_LAYERS: tuple[type[Layer], ...] = (
    Conv2d,
    Linear,
    ResidualConv2d,
    OrthogonalConv2d,
    OrthogonalLinear,
    ResidualOrthogonalLinear,
    NormalizedLinear,
    *ONE_LIPSCHITZ,
    InexactPairs,
    Multiply,
    Divide,
    Shift,
    Normalize,
    BatchNorm,
    Centre,
    Standardize,
    Softmax,
    LocalResponse,
    ReLU,
    LeakyReLU,
    PReLU,
    Abs,
    Add,
    MaxPool2d,
    AvgPool2d,
    L2Pool2d,
    Sort,
    Reshape,
    Expand,
    Permute,
    Gather,
    Pad,
    Clip,
    Sigmoid,
    Softplus,
    Tanh,
    *CURVED,
    *STEEP,
    *STEPS,
    AtLeast,
    AtMost,
    ReLUTheta,
    MaxMin,
    Concat,
    Slice,
    Maximum,
    Minimum,
    Product,
    ReduceSum,
    ReduceMean,
)
#: Every layer by the name it is written down with: a new layer is one class and one row here.
LAYER_KINDS: dict[str, type[Layer]] = {layer.kind: layer for layer in _LAYERS}
