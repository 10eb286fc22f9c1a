"""Small networks of every kind, random and hostile, that the soundness tests certify and attack."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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
from models.layers.joins import Concat, Maximum, Minimum, ReduceMean, ReduceSum, Slice
from models.layers.kinds import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Divide,
    Gather,
    Layer,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Multiply,
    Normalize,
    Pad,
    Permute,
    PReLU,
    ReLU,
    Reshape,
    Shift,
)
from models.network import INPUT, Network
from workers.verification.layers.smooth.s_shaped import KERNEL_ERROR
from workers.verification.layers.smooth.softplus import KERNEL_ERROR as SOFTPLUS_ERROR


class Builder:
    """Grows a network layer by layer, with random weights from one seed."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.random = np.random.default_rng(seed)
        self.input_shape = shape
        self.shape = shape
        self.last = INPUT
        self.rows: list[tuple[str, Layer, tuple[str, ...]]] = []

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def add(self, layer: Layer, *inputs: str) -> str:
        name = f"n{len(self.rows)}"
        self.rows.append((name, layer, inputs or (self.last,)))
        if not inputs:
            self.shape = layer.output_shape(self.shape)
        self.last = name
        return name

    def conv(self, out: int, kernel: int, **options: object) -> None:
        groups = int(options.get("groups", 1))  # type: ignore[call-overload]
        fan_in = self.shape[0] // groups * kernel * kernel
        weight = self.normal(out, self.shape[0] // groups, kernel, kernel) * fan_in**-0.5
        self.add(Conv2d(weight, 0.1 * self.normal(out), **options))  # type: ignore[arg-type]

    def flatten(self) -> None:
        self.add(Reshape(shape=(int(np.prod(self.shape)),)))

    def linear(self, out: int) -> None:
        fan_in = self.shape[0]
        self.add(Linear(self.normal(out, fan_in) * fan_in**-0.5, 0.1 * self.normal(out)))

    def batch_norm(self) -> None:
        channels = self.shape[0]
        self.add(
            BatchNorm(
                self.normal(channels),
                self.normal(channels),
                self.normal(channels),
                self.normal(channels).square() + 0.05,
            )
        )

    def activation(self) -> None:
        """One of all activations; a threshold per channel, about as often in the way as not."""
        per_channel = (self.shape[0], *([1] * (len(self.shape) - 1)))
        made = (
            ReLU,
            # No draw of its own: networks of known seeds keep their shapes.
            lambda: (
                LeakyReLU(slope=0.1)
                if len(self.rows) % 2
                else PReLU(torch.linspace(0, 1, self.shape[0]).reshape(per_channel))
            ),
            lambda: Clip(low=-0.3, high=0.8),
            lambda: Clip(high=0.5) if self.random.integers(2) else Clip(low=0.1),
            Sigmoid,
            # No draw of its own: networks of known seeds keep their shapes.
            lambda: Softplus() if len(self.rows) % 2 else Tanh(),
            MaxMin,
            lambda: ReLUTheta(self.normal(*per_channel).abs()),
            lambda: AtLeast(self.normal(*per_channel)),
            lambda: AtMost(self.normal(*per_channel)),
            lambda: Abs(channels=(None, 1, 2)[int(self.random.integers(3))]),
        )
        self.add(made[int(self.random.integers(len(made)))]())

    def join(self) -> None:
        """Two branches of the last value, or two parts of it, brought together again."""
        before, shape = self.last, self.shape
        kind = int(self.random.integers(5))
        if kind == 0:
            self.conv(2, 3, padding=1)
            self.add(Concat(axis=0), self.last, before, before)
            self.shape = (2 + 2 * shape[0], *shape[1:])
            self.add(Slice(axis=0, start=1, stop=self.shape[0], step=2))
        elif kind == 1:
            axis = int(self.random.integers(3))
            self.add(Slice(axis=axis, start=0, stop=shape[axis], step=2))
            first, self.shape = self.last, shape
            self.last = before
            self.add(Slice(axis=axis, start=shape[axis] // 2, stop=shape[axis]))
            second, two = self.last, self.shape
            self.add(Concat(axis=axis), second, first)
            self.shape = tuple(
                -(-size // 2) + two[axis] if place == axis else size
                for place, size in enumerate(shape)
            )
        else:
            self.conv(shape[0], 3, padding=1)
            if kind == 3:
                branch, self.last = self.last, before
                self.conv(shape[0], 1)
                before, self.last = self.last, branch
            self.add(Minimum() if kind == 2 else Maximum(), self.last, before)

    def reduce(self) -> None:
        """A sum or mean over one or two axes of the map, kept or not."""
        layer = ReduceMean if self.random.integers(2) else ReduceSum
        axes = ((1, 2), (2,), (0,), (1,))[int(self.random.integers(4))]
        self.add(layer(axes=axes, keepdims=bool(self.random.integers(2))))

    def build(self) -> Network:
        return Network(self.input_shape, self.rows).eval()


def random_network(seed: int, *, scale: float = 1.0) -> Network:
    """Convolutions, pools, batch norm, residual sums, constants: another mixture for every seed.

    ``scale`` multiplies the first weights by it and the last ones by its inverse.
    """
    b = Builder((2, 8, 8), seed)
    pick = b.random.integers
    if pick(2):
        b.add(Normalize(torch.tensor([0.4, 0.5]), torch.tensor([0.2, 0.3])))
    if pick(2):
        b.add(Pad(padding=(1, 0, 0, 2), value=float(pick(2)) * 0.3))
    kernel, stride = int(pick(1, 5)), int(pick(1, 3))
    padding = tuple(int(p) for p in pick(0, 3, 4))
    b.conv(4, kernel, stride=stride, padding=padding, groups=int(pick(1, 3)))
    first = b.rows[-1][1]
    if pick(2):
        b.batch_norm()
    b.activation()
    if pick(2):
        b.add(Multiply(b.normal(4, 1, 1)))
        b.add(Shift(b.normal(4, 1, 1)))
        b.add(Divide(b.normal(1).abs() + 0.5))
    pool = int(pick(4))
    if pool == 1:
        b.add(MaxPool2d(kernel=3, stride=int(pick(1, 3)), padding=1))
    elif pool == 2:
        b.add(AvgPool2d(kernel=3, stride=2, padding=1, count_include_pad=bool(pick(2))))
    if pick(2):
        before, shape = b.last, b.shape
        b.conv(4, 3, padding=1, dilation=1)
        b.add(ReLU())
        b.conv(4, 3, padding=2, dilation=2)
        assert b.shape == shape
        b.add(Add(), b.last, before)
        b.add(ReLU())
    if pick(2):
        b.join()
    if pick(4) == 0:
        b.reduce()
    elif pick(2):
        b.add(Permute(axes=(1, 2, 0)))
    elif pick(2):
        places = torch.randperm(b.shape[1], generator=b.generator)
        b.add(Gather(places[: int(pick(1, b.shape[1] + 1))], axis=1))
    b.flatten()
    b.linear(12)
    b.activation()
    b.linear(4)
    last = b.rows[-1][1]
    with torch.no_grad():
        first.weight.mul_(scale)
        last.weight.div_(scale)
    if pick(4) == 0:
        b.add(Multiply(torch.tensor(0.5)))
    return b.build()


def dense_network(sizes: list[int], seed: int, *, scale: float = 1.0) -> Network:
    """A fully connected ReLU network of these sizes."""
    b = Builder((sizes[0],), seed)
    for size in sizes[1:-1]:
        b.linear(size)
        b.add(ReLU())
    b.linear(sizes[-1])
    with torch.no_grad():
        b.rows[0][1].weight.mul_(scale)
    return b.build()


def adversarial_float32(
    network: Network, x: Tensor, generator: torch.Generator, *, unit: float = 2.0**-24
) -> Tensor:
    """One possible float32 evaluation, [batch, classes] float64, with errors as large as allowed.

    Each layer is evaluated in float64 and then every output moved, in a random direction, by up to
    what its own roundings may come to: of a sum in its worst order (``worst_order``), of all others
    as many as they have of the magnitude.
    """
    values = {INPUT: x.to(torch.float64)}
    double = Network.from_description(network.description(), network.state_dict()).double()
    for node in network.nodes:
        layer = double.layer(node.name)
        inputs = [values[source] for source in node.inputs]
        exact = layer(*inputs)
        if isinstance(layer, Conv2d | Linear):
            magnitude, terms = worst_order(leaves_of(layer, inputs[0])), 1
        else:
            magnitude, terms = _magnitude(layer, inputs, unit)
        noise = torch.rand(exact.shape, generator=generator, dtype=torch.float64) * 2 - 1
        if int(torch.randint(2, (1,), generator=generator)):
            noise = noise.sign()
        values[node.name] = exact + noise * (terms * unit) * magnitude
    return values[network.nodes[-1].name]


def leaves_of(layer: Conv2d | Linear, x: Tensor) -> Tensor:
    """The products and the bias that each output is the sum of, [batch, *outputs, n], float64."""
    x, weight = x.double(), layer.weight.detach().double()
    bias = None if layer.bias is None else layer.bias.detach().double()
    if isinstance(layer, Linear):
        products = x.flatten(1)[:, None] * weight
    else:
        top, left, bottom, right = layer.padding
        padded = F.pad(x, (left, right, top, bottom))
        window = {"dilation": layer.dilation, "stride": layer.stride}
        patches = F.unfold(padded, tuple(weight.shape[2:]), **window)
        patches = patches.unflatten(1, (layer.groups, -1)).transpose(2, 3)
        kernel = weight.flatten(1).unflatten(0, (layer.groups, -1))
        products = (patches[:, :, None] * kernel[:, :, None]).flatten(1, 2)
        products = products.unflatten(2, layer.output_shape(tuple(x.shape[1:]))[1:])
        bias = None if bias is None else bias[:, None, None]
    if bias is not None:
        products = torch.cat([products, bias[..., None].expand(*products.shape[:-1], 1)], -1)
    return products


def worst_order(leaves: Tensor, *, products: bool = True) -> Tensor:
    """How far a sum over the last axis may be off to first order, in unit roundoffs, if it is added
    from one end of its sorted numbers to the other; with the roundings of ``products``. Adding 0
    rounds nothing."""
    ordered = leaves.sort(-1).values
    ways = [
        (order.cumsum(-1).abs() * (order != 0))[..., 1:].sum(-1)
        for order in (ordered, ordered.flip(-1))
    ]
    error = torch.maximum(*ways)
    return error + leaves.abs().sum(-1) if products else error


def _magnitude(layer: Layer, inputs: list[Tensor], unit: float) -> tuple[Tensor, int]:
    size = inputs[0].abs()
    if isinstance(layer, Normalize):
        return Normalize(-layer.mean.abs(), layer.std.abs())(size), 2
    if isinstance(layer, BatchNorm):
        scale = layer.weight.abs() / (layer.var + layer.eps).sqrt()
        shape = (-1, *([1] * (size.dim() - 2)))
        shift = (layer.mean.abs() * scale + layer.bias.abs()).reshape(shape)
        return size * scale.reshape(shape) + shift, 6
    if isinstance(layer, AvgPool2d):
        return layer(size), layer.kernel[0] * layer.kernel[1] + 1
    if isinstance(layer, Multiply | Divide):
        return layer(inputs[0]).abs(), 1
    if isinstance(layer, Shift):
        return size + layer.value.abs(), 1
    if isinstance(layer, Add):
        return size + inputs[1].abs(), 1
    if isinstance(layer, ReduceSum | ReduceMean):
        return layer(size), math.prod(inputs[0].shape[axis + 1] for axis in layer.axes) + 1
    if isinstance(layer, Sigmoid | Tanh):
        return torch.full((1,), KERNEL_ERROR / unit, dtype=torch.float64), 1
    if isinstance(layer, Softplus):
        return SOFTPLUS_ERROR / unit + inputs[0].clamp_min(0.0), 1
    if isinstance(layer, LeakyReLU | PReLU):
        return layer(inputs[0]).abs() * (inputs[0] < 0), 1
    return torch.zeros(1, dtype=torch.float64), 0


def saturated_network(seed: int, *activation: Layer) -> Network:
    """Most neurons are off: what the masks are for. Several layers act one after the other."""
    b = Builder((2, 8, 8), seed)

    def activate() -> None:
        for layer in activation:
            b.add(layer)

    b.conv(6, 3, padding=1)
    activate()
    b.conv(6, 4, stride=2, padding=1)
    activate()
    b.flatten()
    b.linear(30)
    activate()
    b.linear(4)
    with torch.no_grad():
        for _, layer, _ in b.rows[:-1]:
            if isinstance(layer, Linear | Conv2d):
                layer.bias.sub_(0.5)
    return b.build()
