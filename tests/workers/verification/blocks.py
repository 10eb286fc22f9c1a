"""Small networks of the layers of transformers and of curved networks, for the soundness searches.

Layer normalisation and the one by root mean squares, softmax inside the network, products of two
activations and attention, smooth activations, waves, exponentials and quotients, maxima, steps,
local response normalisation. Every kind at ordinary weights and scaled.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from models.layers.activations import (
    Ceil,
    Floor,
    MaxMin,
    Round,
    Sigmoid,
    Sign,
    Softplus,
    Tanh,
)
from models.layers.curves import (
    CELU,
    ELU,
    GELU,
    SELU,
    Atan,
    Cos,
    Erf,
    Exp,
    HardSwish,
    Log,
    Mish,
    Power,
    Reciprocal,
    SiLU,
    Sin,
    Softsign,
    Sqrt,
)
from models.layers.euclidean import Sort
from models.layers.joins import Maximum, Minimum, Product, ReduceMean, ReduceSum
from models.layers.kinds import (
    Add,
    AvgPool2d,
    Conv2d,
    Layer,
    Linear,
    MaxPool2d,
    Multiply,
    Permute,
    ReLU,
    Reshape,
    Shift,
)
from models.layers.normalization import Centre, LocalResponse, Softmax, Standardize
from models.layers.shapes import Expand
from models.network import INPUT, Network
from tests.workers.verification.networks import Builder

__all__ = ["KINDS", "Blocks", "block_network"]

#: Of the first weights; the last ones are divided by it. A norm undoes it, a softmax saturates.
SCALES = (1.0, 1.0, 1.0, 30.0, 1 / 30, 1e4, 1e-4)
EPSILONS = (1e-12, 1e-6, 1e-5, 1e-3, 0.3)
SMOOTH: tuple[Callable[[], Layer], ...] = (
    GELU,
    lambda: GELU(approximate="tanh"),
    SiLU,
    Tanh,
    Sigmoid,
    Softplus,
    Mish,
    HardSwish,
    ELU,
    SELU,
    lambda: CELU(alpha=0.5),
    Softsign,
    Erf,
)


class Blocks(Builder):
    """A builder that knows the shape of every node."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        super().__init__(shape, seed)
        self.shapes = {INPUT: shape}

    def add(self, layer: Layer, *inputs: str) -> str:
        name = super().add(layer, *(inputs or (self.last,)))
        self.shape = layer.output_shape(*(self.shapes[source] for source in self.rows[-1][2]))
        self.shapes[name] = self.shape
        return name

    def one_of(self, made: tuple[Callable[[], Layer], ...]) -> None:
        """One of these layers."""
        self.add(made[int(self.random.integers(len(made)))]())

    def norm(self, axes: tuple[int, ...], *, centred: bool) -> None:
        """Layer normalisation (``centred``) or by root mean squares, by operator or by nodes."""
        before = self.last
        if centred:
            self.add(Centre(axes=axes))
        operator = centred and bool(self.random.integers(2))
        eps = float(self.random.choice(EPSILONS))
        self.add(Standardize(axes=axes, eps=eps), self.last, before if operator else self.last)
        if self.random.integers(2):
            last = tuple(n if axis in axes else 1 for axis, n in enumerate(self.shape))
            self.add(Multiply(1.0 + 0.3 * self.normal(*last)))
            self.add(Shift(0.3 * self.normal(*last)))

    def matmul(self, left: str, right: str) -> str:
        """left @ right of [m, k] and [k, n]: products and their sums, as files are read."""
        (m, k), n = self.shapes[left], self.shapes[right][1]
        sides = []
        for shape, value in (((m, k, 1), left), ((1, k, n), right)):
            self.add(Reshape(shape=shape), value)
            sides.append(self.add(Expand(shape=(m, k, n))))
        self.add(Product(), *sides)
        return self.add(ReduceSum(axes=(1,)))

    def per_token(self, out: int, source: str) -> str:
        """Another linear map of each token: [tokens, width] to [tokens, out]."""
        tokens, width = self.shapes[source]
        self.add(Permute(axes=(1, 0)), source)
        self.add(Reshape(shape=(width, tokens, 1)))
        self.conv(out, 1)
        self.add(Reshape(shape=(out, tokens)))
        return self.add(Permute(axes=(1, 0)))

    def attention(self) -> None:
        """Softmax of the tokens' products, tokens weighted by it, with a residual sum."""
        x, (_, width) = self.last, self.shape
        q, k, v = (self.per_token(width, x) for _ in range(3))
        self.matmul(q, self.add(Permute(axes=(1, 0)), k))
        self.add(Multiply(torch.tensor(width**-0.5)))
        weights = self.add(Softmax(axes=(1,)))
        self.add(Add(), self.matmul(weights, v), x)

    def smooth(self) -> None:
        """One smooth activation."""
        self.one_of(SMOOTH)

    def head(self, scale: float) -> Network:
        """Three logits, and the weights scaled."""
        self.flatten()
        self.linear(3)
        scaled = [row[1] for row in self.rows if isinstance(row[1], Linear | Conv2d)]
        with torch.no_grad():
            scaled[0].weight.mul_(scale)
            scaled[-1].weight.div_(scale)
        return self.build()


def _normalised(seed: int, *, centred: bool) -> Blocks:
    """Dense layers on groups of numbers, or convolutions on an image, a norm behind each."""
    image = bool(seed % 3 == 0)
    b = Blocks((2, 4, 4) if image else (6,), seed)
    for width in (12, 8):
        if image:
            b.conv(3, 3, padding=1)
            axes = ((0,), (1, 2), (0, 1, 2))[int(b.random.integers(3))]
        else:
            if len(b.shape) > 1:
                b.flatten()
            b.linear(width)
            axes = (0,)
            if b.random.integers(2):
                b.add(Reshape(shape=(2, width // 2)))
                axes = ((1,), (0,), (0, 1))[int(b.random.integers(3))]
        b.norm(axes, centred=centred)
        before = b.last
        b.add(ReLU()) if b.random.integers(2) else b.smooth()
        if b.random.integers(2):
            b.add(Add(), before, b.last)
    return b


def _attention(seed: int) -> Blocks:
    """One transformer block of 4 to 6 tokens of 4 to 8 numbers, a norm before or behind it."""
    tokens, width = 4 + seed % 3, 4 + 2 * (seed // 3 % 3)
    b = Blocks((tokens, 2), seed)
    b.per_token(width, INPUT)
    centred, place = bool(b.random.integers(2)), int(b.random.integers(3))
    if place == 0:
        b.norm((1,), centred=centred)
    b.attention()
    if place == 1:
        b.norm((1,), centred=centred)
    if b.random.integers(2):
        before = b.last
        b.per_token(width, before)
        b.smooth()
        b.add(Add(), b.last, before)
    if b.random.integers(2):
        b.add(ReduceMean(axes=(0,)))
    return b


def _softmax(seed: int) -> Blocks:
    """A softmax over all of a layer's numbers or over groups of them, and what follows it."""
    b = Blocks((6,), seed)
    b.linear(12)
    if b.random.integers(2):
        b.smooth()
    if b.random.integers(2):
        b.add(Multiply(torch.tensor(float(b.random.choice([0.3, 3.0, 30.0])))))
    b.add(Reshape(shape=((1, 12), (3, 4), (6, 2))[int(b.random.integers(3))]))
    b.add(Softmax(axes=(int(b.random.integers(2)),) if b.shape[0] > 1 else (1,)))
    b.flatten()
    b.linear(8)
    b.add(ReLU())
    return b


def _products(seed: int) -> Blocks:
    """A gate, the product of two branches, or a matrix product of a layer's numbers."""
    b = Blocks((6,), seed)
    b.linear(12)
    before = b.last
    kind = seed % 3
    if kind == 0:
        b.one_of((Sigmoid, Tanh))
        b.add(Product(), *((before, b.last) if b.random.integers(2) else (b.last, before)))
    elif kind == 1:
        b.linear(12)
        b.smooth()
        b.add(Product(), before, b.last)
    else:
        left = b.add(Reshape(shape=(3, 4)), before)
        b.add(Reshape(shape=(12,)), before)
        b.linear(8)
        b.matmul(left, b.add(Reshape(shape=(4, 2))))
    b.flatten()
    b.linear(8)
    b.add(ReLU()) if b.random.integers(2) else b.smooth()
    return b


def _smooth(seed: int) -> Blocks:
    """Convolutions or dense layers with smooth activations."""
    image = seed % 3 == 0
    b = Blocks((2, 5, 5) if image else (6,), seed)
    for width in (12, 10):
        b.conv(4, 3, padding=1) if image else b.linear(width)
        b.smooth()
    if image and b.random.integers(2):
        b.add(AvgPool2d(kernel=2, stride=2))
    return b


def _steep(seed: int) -> Blocks:
    """Bells around centres, exponentials, roots and logarithms of what is above 0, quotients."""
    b = Blocks((6,), seed)
    b.linear(12)
    before, kind = b.last, seed % 4
    if kind == 0:
        b.add(Power())
        b.add(Multiply(torch.tensor(-float(b.random.choice([0.1, 1.0, 5.0])))))
        b.add(Exp())
    elif kind == 1:
        b.add(Tanh())
        b.add(Multiply(torch.tensor(float(b.random.choice([0.3, 3.0, 20.0])))))
        b.add(Exp())
    else:
        b.one_of((Softplus, Power, Exp, Sigmoid))
        b.add(Shift(torch.tensor(float(b.random.choice([0.01, 0.3, 1.0])))))
        b.one_of((Log, Sqrt, Reciprocal) if kind == 2 else (Reciprocal,))
        if kind == 3:
            b.add(Product(), before, b.last)
    b.linear(8)
    b.add(ReLU()) if b.random.integers(2) else b.smooth()
    return b


def _waves(seed: int) -> Blocks:
    """Sines and cosines of numbers of a few periods and of many (SIREN, Fourier features), Atan."""
    b = Blocks((6,), seed)
    for width in (12, 10)[: 1 + seed % 2]:
        b.linear(width)
        b.add(Multiply(torch.tensor(float(b.random.choice([0.3, 1.0, 3.0, 30.0])))))
        b.one_of((Sin, Cos, Sin, Cos, Atan))
    if seed % 3 == 0:
        before = b.last
        b.one_of((Sin, Cos))
        b.add(Product(), before, b.last)
    b.linear(8)
    b.add(ReLU()) if b.random.integers(2) else b.one_of((Sin, Cos, Atan))
    return b


def _steps(seed: int) -> Blocks:
    """Binarised layers, or numbers rounded to a grid, between ordinary ones."""
    image = seed % 3 == 0
    b = Blocks((2, 5, 5) if image else (6,), seed)
    for width in (10, 8):
        b.conv(3, 3, padding=1) if image else b.linear(width)
        if b.random.integers(2):
            b.one_of((Sign, lambda: Sign(at_zero=1)))
        else:
            grid = float(b.random.choice([1.0, 4.0, 16.0]))
            b.add(Multiply(torch.tensor(grid)))
            b.one_of((Floor, Ceil, Round))
            b.add(Multiply(torch.tensor(1.0 / grid)))
    if b.random.integers(2):
        b.flatten()
        b.linear(8)
        b.add(ReLU()) if b.random.integers(2) else b.smooth()
    return b


def _local_response(seed: int) -> Blocks:
    """Convolutions with a local response normalisation behind each, as AlexNet has them."""
    b = Blocks((2, 5, 5), seed)
    for channels in (6, 5):
        b.conv(channels, 3, padding=1)
        b.add(ReLU()) if b.random.integers(3) else b.smooth()
        alpha, bias = (float(b.random.choice(sizes)) for sizes in ([1e-4, 0.3, 5.0], [0.2, 1.0]))
        size = int(b.random.choice([1, 3, 5]))
        b.add(LocalResponse(size=size, alpha=alpha, beta=0.75, bias=bias))
    b.flatten()
    b.linear(8)
    b.add(ReLU())
    return b


def _maxima(seed: int) -> Blocks:
    """Max pools, MaxMin, sorted numbers, extremes of two branches, between smooth activations."""
    b = Blocks((2, 6, 6), seed)
    b.conv(4, 3, padding=1)
    b.one_of((MaxMin, lambda: Sort(axis=0), ReLU, SiLU))
    b.add(
        MaxPool2d(
            kernel=int(b.random.integers(2, 4)),
            stride=int(b.random.integers(1, 3)),
            padding=int(b.random.integers(2)),
        )
    )
    if b.random.integers(2):
        before = b.last
        b.conv(4, 3, padding=1)
        b.one_of((MaxMin, Tanh, ReLU))
        b.add(Maximum() if b.random.integers(2) else Minimum(), b.last, before)
    b.flatten()
    b.linear(8)
    b.one_of((MaxMin, lambda: Sort(axis=0, descending=True), GELU, ReLU))
    return b


KINDS: dict[str, Callable[[int], Blocks]] = {
    "layer-norm": lambda seed: _normalised(seed, centred=True),
    "rms-norm": lambda seed: _normalised(seed, centred=False),
    "attention": _attention,
    "softmax": _softmax,
    "products": _products,
    "smooth": _smooth,
    "steep": _steep,
    "waves": _waves,
    "steps": _steps,
    "local-response": _local_response,
    "maxima": _maxima,
}


def block_network(kind: str, seed: int) -> tuple[Network, float]:
    """The network of this kind and seed, and the scale of its first weights."""
    scale = float(np.random.default_rng([seed, 1]).choice(SCALES))
    return KINDS[kind](seed).head(scale), scale
