"""Layer lists of a request, checked and turned into a network without weights.

Every layer may carry ``name`` (unique) and ``from`` (the name of an earlier layer, or ``input``);
without ``from`` it takes the layer before it. Layers of several inputs (``add``, also called
``residual``, ``concat``, ``maximum``, ``minimum``) take the layer before them and ``from``, or the
layers that ``from`` lists. One function and one row in
``KINDS`` per kind; nothing takes memory in the size of the weights before the sizes are checked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from models.architectures.layer_rows import MAX_SIZE, LayerRow
from models.errors import ModelError
from models.layers.activations import AtLeast, AtMost, Clip, MaxMin, ReLUTheta, Sigmoid, Tanh
from models.layers.joins import Concat, Maximum, Minimum, ReduceMean, ReduceSum, Slice
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
from models.layers.reparametrized import (
    NormalizedLinear,
    OrthogonalConv2d,
    OrthogonalLinear,
    ResidualConv2d,
    ResidualOrthogonalLinear,
)
from models.network import INPUT, Network

__all__ = ["KINDS", "Blueprint", "blueprint_of"]

#: Kinds that join the layer before them with the one that a single ``from`` names.
JOINING = ("add", "concat", "maximum", "minimum", "residual")
#: Initial thresholds of ReLU-theta (Local-Lip, Huang et al. 2021: 1 or 2).
THETA = 1.0
#: How weights may begin, see ``models.architectures.initial_values``.
INITS = ("default", "glorot", "he", "orthogonal")
MAX_LAYERS = 1_000
MAX_PARAMETERS = 1 << 27
MAX_ACTIVATION = 1 << 26
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,99}")


@dataclass(frozen=True)
class Blueprint:
    """A network whose weights are still missing: they live on torch's ``meta`` device."""

    skeleton: Network
    init: str
    #: Tensors that the list itself gives (normalisation), by their name in the state dict.
    given: Mapping[str, Tensor]
    #: The request's own names of layers, by node.
    names: Mapping[str, str]
    #: The rows of the list, by node: what initial values are read from.
    rows: Mapping[str, Mapping[str, Any]]

    def network(self, tensors: Mapping[str, Tensor]) -> Network:
        """The network with these tensors (by their names in the skeleton's state dict)."""
        return Network.from_description(
            self.skeleton.description(), {**tensors, **self.given}
        ).eval()

    def deployed(self) -> Blueprint:
        """The same for the layers that are deployed: what a checkpoint holds."""
        return replace(self, skeleton=self.skeleton.deployed())


def _meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _image(row: LayerRow, shape: Shape) -> Shape:
    if len(shape) != 3:
        row.refuse(f"needs an input [channels, h, w], not {shape}")
    return shape


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
    """A trained threshold per unit; ``half`` leaves the other half of the channels alone."""

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
    axis = row.integer("axis", 0, least=0)
    if axis >= len(shape):
        row.refuse(f'needs "axis", one of {shape}')
    return Slice(
        axis=axis,
        start=row.integer("start", 0, least=0),
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


#: Kinds of layers in a list: a new one is one function and one row here.
KINDS: dict[str, Callable[[LayerRow, Shape], Layer]] = {
    "add": lambda row, shape: Add(),
    "at-least": _limit(AtLeast),
    "at-most": _limit(AtMost),
    "avg-pool2d": _avg_pool,
    "batch-norm": _batch_norm,
    "clip": _clip,
    "concat": lambda row, shape: Concat(axis=row.integer("axis", 0, least=0)),
    "conv2d": _conv2d,
    "flatten": lambda row, shape: Reshape(shape=(math.prod(shape),)),
    "global-avg-pool": _global_avg_pool,
    "leaky-relu": lambda row, shape: LeakyReLU(slope=row.number("slope", 0.01, 0.0, 1.0)),
    "linear": _linear,
    "max-pool2d": _max_pool,
    "maximum": lambda row, shape: Maximum(),
    "maxmin": lambda row, shape: MaxMin(),
    "minimum": lambda row, shape: Minimum(),
    "normalize": _normalize,
    "normalized-linear": lambda row, shape: _linear(row, shape, NormalizedLinear),
    "orthogonal-conv2d": _orthogonal_conv2d,
    "orthogonal-linear": lambda row, shape: _linear(row, shape, OrthogonalLinear),
    "reduce-mean": _reduction(ReduceMean),
    "reduce-sum": _reduction(ReduceSum),
    "relu": lambda row, shape: ReLU(),
    "relu-theta": _relu_theta,
    "relu6": lambda row, shape: Clip(low=0.0, high=6.0),
    "residual": lambda row, shape: Add(),
    "residual-conv2d": _residual_conv2d,
    "residual-orthogonal-linear": _residual_linear,
    "sigmoid": lambda row, shape: Sigmoid(),
    "slice": _slice,
    "tanh": lambda row, shape: Tanh(),
}


def blueprint_of(description: Mapping[str, Any]) -> Blueprint:
    """The network of a layer list, without weights. Raises ModelError."""
    known = {"input", "layers", "init"}
    unknown = sorted(str(key)[:40] for key in description if key not in known)
    rows, shape, init = (description.get(key) for key in ("layers", "input", "init"))
    if unknown or init not in (None, *INITS):
        _invalid(f"an architecture has {sorted(known)}, not {unknown or init!r}")
    if (
        not isinstance(shape, list | tuple)
        or not 1 <= len(shape) <= 4
        or any(type(size) is not int or not 1 <= size <= MAX_SIZE for size in shape)
        or math.prod(shape) > MAX_ACTIVATION
    ):
        _invalid('"input" must be the shape of one sample, such as [3, 32, 32]')
    if not isinstance(rows, list | tuple) or not 1 <= len(rows) <= MAX_LAYERS:
        _invalid(f'"layers" must be a list of 1 to {MAX_LAYERS} layers')
    plan = _Plan(tuple(shape))
    for index, raw in enumerate(rows):
        plan.append(LayerRow(index, raw), index)
    skeleton = Network(plan.input_shape, plan.layers)
    if skeleton.classes < 2:
        _invalid("a classifier needs at least two outputs")
    return Blueprint(skeleton, init or "default", plan.given, plan.names, plan.rows)


class _Plan:
    """The layers laid down so far, by node, with their shapes and the request's names."""

    def __init__(self, input_shape: Shape) -> None:
        self.input_shape = input_shape
        self.layers: list[tuple[str, Layer, tuple[str, ...]]] = []
        self.shapes: dict[str, Shape] = {INPUT: input_shape}
        self.nodes: dict[str, str] = {INPUT: INPUT}
        self.names: dict[str, str] = {}
        self.given: dict[str, Tensor] = {}
        self.rows: dict[str, Mapping[str, Any]] = {}
        self.parameters = 0
        self.last = INPUT

    def append(self, row: LayerRow, index: int) -> None:
        maker = KINDS.get(row.kind)
        if maker is None:
            row.refuse("is of an unknown kind", "known: " + ", ".join(sorted(KINDS)))
        inputs = self._inputs(row)
        layer = maker(row, self.shapes[inputs[0]])
        row.finish()
        if not layer.takes(len(inputs)):
            row.refuse(f"takes {layer.arity or 'two or more'} inputs, not {len(inputs)}")
        try:
            shape = layer.output_shape(*(self.shapes[source] for source in inputs))
        except ModelError as error:
            row.refuse(f"does not fit: {error}")
        self.parameters += sum(tensor.numel() for tensor in layer.state_dict().values())
        if self.parameters > MAX_PARAMETERS or math.prod(shape) > MAX_ACTIVATION:
            raise ModelError(f"{row.label} makes the network too large", code="model_too_large")
        node = f"{layer.kind}_{index}"
        self.layers.append((node, layer, inputs))
        self.shapes[node] = tuple(shape)
        self._name(row, node)
        self.rows[node] = row.row
        if isinstance(layer, Normalize):
            self.given.update({f"layers.{node}.mean": layer.mean, f"layers.{node}.std": layer.std})
        self.last = node

    def _name(self, row: LayerRow, node: str) -> None:
        name = row.row.get("name")
        if name is None:
            return
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in self.nodes:
            row.refuse(f"has a name that is taken or not usable: {name!r:.60}")
        self.nodes[name] = node
        self.names[node] = name

    def _inputs(self, row: LayerRow) -> tuple[str, ...]:
        given = row.row.get("from")
        joins = row.kind in JOINING
        sources = list(given) if isinstance(given, list | tuple) else [given]
        unknown = [s for s in sources if s is not None and (not isinstance(s, str))]
        unknown += [s for s in sources if isinstance(s, str) and s not in self.nodes]
        if unknown or (joins and given is None):
            row.refuse(
                f'needs "from": names of earlier layers or "{INPUT}", not {str(given)[:60]!r}'
            )
        nodes = tuple(self.nodes[source] for source in sources if source is not None)
        if joins and len(nodes) == 1:
            return (self.last, *nodes)
        return nodes or (self.last,)


def _afford(row: LayerRow, count: int) -> None:
    if count > MAX_PARAMETERS:
        raise ModelError(f"{row.label} has {count} parameters: too many", code="model_too_large")


def _invalid(message: str) -> NoReturn:
    raise ModelError(message, code="invalid_architecture")
