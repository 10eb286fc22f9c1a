"""First values of a network's tensors; the same generator state gives the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.architectures.layer_lists import Blueprint
from models.architectures.layer_makers import THETA
from models.layers.activations import AtLeast, AtMost, ReLUTheta
from models.layers.affine import Conv2d, Linear
from models.layers.base import Layer
from models.layers.kinds import BatchNorm
from models.layers.one_lipschitz import (
    AolConv2d,
    AolLinear,
    BroConv2d,
    BroLinear,
    CplConv2d,
    CplLinear,
    Householder,
    NormalizedHead,
    OrthogonalChannels,
    ProjectionPool,
    SkewConv2d,
    SllConv2d,
    SllLinear,
    SummedLinear,
)
from models.layers.one_lipschitz.skew_kernels import flattenings, skew
from models.layers.reparametrized import (
    NormalizedLinear,
    OrthogonalConv2d,
    OrthogonalLinear,
    ResidualConv2d,
    ResidualOrthogonalLinear,
)

__all__ = ["NO_LIMIT", "initial_tensors"]

#: A threshold that no value reaches, for the half of the channels that is not clamped.
NO_LIMIT = 2.0**60
#: Power steps of a skew convolution before its training.
FIRST_POWER_STEPS = 50

Tensors = dict[str, Tensor]
Initial = Callable[[Any, Mapping[str, Any], str, torch.Generator | None], Tensors]


def initial_tensors(
    plan: Blueprint,
    generator: torch.Generator | None,
    *,
    init: str | None = None,
    theta: float | None = None,
) -> Tensors:
    """Every tensor of the blueprint's state dict that the list itself does not give.

    ``init`` and ``theta`` (of ReLU-theta) come before what the list says. ``ibp`` is for all
    weights but the last layer's.
    """
    tensors: Tensors = {}
    chosen, last = init or plan.init, plan.skeleton.nodes[-1].name
    for node in plan.skeleton.nodes:
        layer = plan.skeleton.layer(node.name)
        rule = _RULES.get(type(layer))
        if rule is not None:
            row = plan.rows[node.name]
            if theta is not None and isinstance(layer, ReLUTheta):
                row = {**row, "value": theta}
            begins = "default" if chosen == "ibp" and node.name == last else chosen
            found = rule(layer, row, begins, generator)
            tensors.update({f"layers.{node.name}.{name}": v for name, v in found.items()})
    return tensors


def _affine(
    layer: Conv2d | Linear, row: Mapping[str, Any], init: str, generator: torch.Generator | None
) -> Tensors:
    """torch's U(-b, b) with b = 1 / sqrt(fan in), the papers' normal, orthogonal rows, Glorot's
    U(-b, b) with b = sqrt(6 / (fan in + fan out)), or for boxes N(0, 2 pi / (fan in)^2), which
    keeps their widths (Shi et al. 2021, section 4.1)."""
    shape = layer.weight.shape
    has_bias = layer.bias is not None
    if init == "orthogonal":
        weight = torch.empty(shape[0], math.prod(shape[1:]))
        nn.init.orthogonal_(weight, generator=generator)
        bias = {"bias": torch.zeros(shape[0])} if has_bias else {}
        return {"weight": weight.reshape(shape), **bias}
    if init == "he" and isinstance(layer, Conv2d):
        deviation = math.sqrt(2 / (shape[0] * math.prod(shape[2:])))
        weight = torch.empty(shape).normal_(0, deviation, generator=generator)
        return {"weight": weight, **({"bias": torch.zeros(shape[0])} if has_bias else {})}
    if init == "glorot":
        weight = nn.init.xavier_uniform_(torch.empty(shape), generator=generator)
        return {"weight": weight, **({"bias": torch.zeros(shape[0])} if has_bias else {})}
    fan_in = math.prod(shape[1:])
    bound = 1 / math.sqrt(fan_in)
    tensors = {"weight": torch.empty(shape).uniform_(-bound, bound, generator=generator)}
    if init == "ibp":
        tensors["weight"].normal_(0, math.sqrt(2 * math.pi) / fan_in, generator=generator)
    if has_bias:
        tensors["bias"] = torch.empty(shape[0]).uniform_(-bound, bound, generator=generator)
    return tensors


def _orthogonal(
    layer: Conv2d | Linear, row: Mapping[str, Any], init: str, generator: torch.Generator | None
) -> Tensors:
    return _affine(layer, row, "orthogonal", generator)


def _residual(
    layer: ResidualConv2d | ResidualOrthogonalLinear,
    row: Mapping[str, Any],
    init: str,
    generator: torch.Generator | None,
) -> Tensors:
    shape = layer.weight.shape
    # As published: close to the identity at any depth.
    weight = torch.empty(shape).normal_(0, 1 / math.prod(shape[1:]), generator=generator)
    return {"weight": weight, "gain": torch.ones(layer.gain.shape), "bias": torch.zeros(shape[0])}


def _skew(
    layer: SkewConv2d, row: Mapping[str, Any], init: str, generator: torch.Generator | None
) -> Tensors:
    """As published; the vectors of the power steps after some of them, from normal ones."""
    channels = layer.weight.shape[0]
    deviation = 1 / math.sqrt(channels)
    weight = torch.empty(layer.weight.shape).normal_(0, deviation, generator=generator)
    tensors = {"weight": weight}
    for name, matrix in zip(("tall", "flat"), flattenings(skew(weight)), strict=True):
        vector = torch.empty(len(matrix)).normal_(generator=generator)
        for _ in range(FIRST_POWER_STEPS):
            vector = nn.functional.normalize(matrix @ (matrix.T @ vector), dim=0)
        tensors[name] = vector
    if layer.bias is not None:
        bias = torch.empty(layer.bias.shape).uniform_(-deviation, deviation, generator=generator)
        tensors["bias"] = bias
    return tensors


def _potential(
    layer: CplConv2d | SllConv2d,
    row: Mapping[str, Any],
    init: str,
    generator: torch.Generator | None,
) -> Tensors:
    """As published: Glorot's normal weights, biases U(-b, b) with b = 1 / sqrt(fan in); the vector
    of the power steps after some of them."""
    weight = nn.init.xavier_normal_(torch.empty(layer.weight.shape), generator=generator)
    bound = 1 / math.sqrt(math.prod(weight.shape[1:]))
    bias = torch.empty(layer.bias.shape).uniform_(-bound, bound, generator=generator)
    tensors = {"weight": weight, "bias": bias}
    if isinstance(layer, SllConv2d):
        return {**tensors, "scale": torch.zeros(layer.scale.shape)}
    vector = torch.empty(layer.vector.shape).normal_(generator=generator)
    started = type(layer)(weight, bias, vector)
    for _ in range(FIRST_POWER_STEPS):
        started.lengths()
    return {**tensors, "vector": started.vector}


def _reflector(
    layer: BroConv2d | BroLinear,
    row: Mapping[str, Any],
    init: str,
    generator: torch.Generator | None,
) -> Tensors:
    """V normal; the bias 0."""
    shape = layer.weight.shape
    weight = torch.empty(shape).normal_(0, 1 / math.sqrt(shape[0]), generator=generator)
    return {"weight": weight, "bias": torch.zeros(layer.bias.shape)}


def _householder(
    layer: Householder, row: Mapping[str, Any], init: str, generator: torch.Generator | None
) -> Tensors:
    """pi / 2, where a fold is (min, max); a second fold begins at random."""
    theta = torch.full(layer.theta.shape, math.pi / 2)
    if len(theta) > 1:
        theta[1:].uniform_(0, math.pi, generator=generator)
    return {"theta": theta}


def _projection(
    layer: ProjectionPool, row: Mapping[str, Any], init: str, generator: torch.Generator | None
) -> Tensors:
    return {"theta": torch.empty(layer.theta.shape).uniform_(0, math.pi, generator=generator)}


def _batch_norm(
    layer: BatchNorm, row: Mapping[str, Any], init: str, generator: torch.Generator | None
) -> Tensors:
    values = {"weight": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}
    return {name: torch.full(layer.weight.shape, value) for name, value in values.items()}


def _relu_theta(
    layer: ReLUTheta, row: Mapping[str, Any], init: str, generator: torch.Generator | None
) -> Tensors:
    return {"theta": torch.full(layer.theta.shape, float(row.get("value", THETA)))}


def _limit(
    layer: AtLeast | AtMost, row: Mapping[str, Any], init: str, generator: torch.Generator | None
) -> Tensors:
    shape, half = layer.value.shape, row.get("half")
    value = torch.full(shape, float(row.get("value", 0.0)))
    if half is not None:
        other = slice(shape[0] // 2, None) if half == "first" else slice(None, shape[0] // 2)
        value[other] = NO_LIMIT if isinstance(layer, AtMost) else -NO_LIMIT
    return {"value": value}


_RULES: dict[type[Layer], Initial] = {
    **dict.fromkeys((Conv2d, Linear, SummedLinear), _affine),
    **dict.fromkeys((OrthogonalChannels, OrthogonalConv2d, OrthogonalLinear), _orthogonal),
    **dict.fromkeys((AolConv2d, AolLinear, NormalizedHead, NormalizedLinear), _orthogonal),
    **dict.fromkeys((CplConv2d, CplLinear, SllConv2d, SllLinear), _potential),
    **dict.fromkeys((BroConv2d, BroLinear), _reflector),
    **dict.fromkeys((ResidualConv2d, ResidualOrthogonalLinear), _residual),
    SkewConv2d: _skew,
    Householder: _householder,
    ProjectionPool: _projection,
    BatchNorm: _batch_norm,
    ReLUTheta: _relu_theta,
    AtLeast: _limit,
    AtMost: _limit,
}
