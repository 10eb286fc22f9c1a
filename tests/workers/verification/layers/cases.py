"""Small networks of one layer each: what every rule of a layer is tried on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.layers.activations import (
    Abs,
    AtLeast,
    AtMost,
    Ceil,
    Clip,
    Floor,
    MaxMin,
    PReLU,
    ReLUTheta,
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
    Within,
)
from models.layers.euclidean import L2Pool2d, Sort
from models.layers.joins import Concat, Maximum, Minimum, Product, ReduceMean, ReduceSum, Slice
from models.layers.kinds import Add, Gather, Layer, Multiply, ReLU, Reshape
from models.layers.normalization import Centre, LocalResponse, Softmax, Standardize
from models.layers.one_lipschitz import InexactPairs
from models.layers.shapes import Expand
from models.network import Network
from tests.workers.verification.networks import Builder
from workers.verification.layers.registry import rules_of

SHAPE = (4, 3, 5)

Branches = list[tuple[str, Layer, tuple[str, ...]]]


def one(layer: Layer) -> Branches:
    return [("z", layer, ("input",))]


def two(layer: Layer) -> Branches:
    """The layer on clamped and on sliced, joined and clamped inputs: exact steps only."""
    return [
        ("a", AtLeast(torch.tensor(0.3)), ("input",)),
        ("b", AtMost(torch.tensor(0.6)), ("input",)),
        ("z", layer, ("a", "b")),
    ]


def spread(seed: int) -> Tensor:
    """Factors of many sizes, so that no two boxes are alike."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


#: One activation per channel of the image, and two more after a product.
CURVED = (ELU(alpha=2.0), SELU(), CELU(alpha=0.5), Softsign())
GATES = (SiLU(), GELU(), GELU(approximate="tanh"), HardSwish())


def curved(layers: tuple[Layer, ...], factor: float) -> Branches:
    """Each channel through another layer, spread over numbers of both signs."""
    rows: Branches = [("m", Multiply(spread(11) * factor), ("input",))]
    for place, layer in enumerate(layers):
        rows.append((f"c{place}", Slice(axis=0, start=place, stop=place + 1), ("m",)))
        rows.append((f"f{place}", layer, (f"c{place}",)))
    return [*rows, ("z", Concat(axis=0), tuple(f"f{place}" for place in range(len(layers))))]


def above_zero(layer: Layer) -> Branches:
    """The layer on numbers above 0, of many sizes."""
    rows: Branches = [("m", Multiply(spread(21) * 0.2), ("input",)), ("s", Softplus(), ("m",))]
    return [*rows, ("z", layer, ("s",))]


def fold(*theta: float) -> Branches:
    """p - 2 n max(n . p, 0) of pairs of channels, as the importer writes it."""
    half = torch.tensor(theta)[:, None, None] / 2
    normal = (torch.sin(half), -torch.cos(half))
    return [
        ("m", Multiply(spread(22)), ("input",)),
        ("x", Slice(axis=0, start=0, stop=2), ("m",)),
        ("y", Slice(axis=0, start=2, stop=4), ("m",)),
        *((f"n{name}", Multiply(value), (name,)) for name, value in zip("xy", normal, strict=True)),
        ("n", Add(), ("nx", "ny")),
        ("r", ReLU(), ("n",)),
        *((f"b{name}", Multiply(-2.0 * v), ("r",)) for name, v in zip("xy", normal, strict=True)),
        ("b", Concat(axis=0), ("bx", "by")),
        ("z", Add(), ("m", "b")),
    ]


CASES: dict[str, Callable[[], Branches]] = {
    "clip": lambda: one(Clip(low=0.2, high=0.7)),
    "relu-theta": lambda: one(ReLUTheta(torch.tensor([[0.4]]))),
    "at-least": lambda: one(AtLeast(torch.linspace(0, 1, 4)[:, None, None])),
    "at-most": lambda: one(AtMost(torch.linspace(0, 1, 5))),
    "prelu": lambda: [
        ("m", Multiply(spread(19)), ("input",)),
        ("z", PReLU(torch.linspace(0, 1, 4)[:, None, None]), ("m",)),
    ],
    "sigmoid": lambda: one(Sigmoid()),
    "tanh": lambda: one(Tanh()),
    "softplus": lambda: [
        ("m", Multiply(spread(8) * 4), ("input",)),
        ("z", Softplus(), ("m",)),
    ],
    "exponential": lambda: curved(CURVED, 3.0),
    "gates": lambda: curved(GATES, 5.0),
    "mish, erf": lambda: curved((Mish(), Erf()), 4.0),
    "waves": lambda: curved((Sin(), Cos(), Atan()), 5.0),
    "power": lambda: curved((Power(), Power(exponent=3)), 0.7),
    "exp": lambda: [("m", Multiply(spread(20)), ("input",)), ("z", Exp(), ("m",))],
    "log": lambda: above_zero(Log()),
    "reciprocal": lambda: above_zero(Reciprocal()),
    "steps": lambda: curved((Sign(), Floor(), Ceil(), Round()), 3.0),
    "sqrt": lambda: above_zero(Sqrt()),
    "within": lambda: one(Within(low=-9.0, high=9.0)),
    "product": lambda: [
        ("a", Multiply(spread(12)), ("input",)),
        ("b", Multiply(spread(13)), ("input",)),
        ("z", Product(), ("a", "b")),
    ],
    "product of a gate that is repeated": lambda: [
        ("s", ReduceMean(axes=(1, 2), keepdims=True), ("input",)),
        ("g", Sigmoid(), ("s",)),
        ("e", Expand(shape=SHAPE), ("g",)),
        ("z", Product(), ("input", "e")),
    ],
    "layer norm in nodes": lambda: [
        ("m", Multiply(spread(14) * 2), ("input",)),
        ("c", Centre(axes=(1, 2)), ("m",)),
        ("z", Standardize(axes=(1, 2), eps=0.1), ("c", "c")),
    ],
    "layer norm": lambda: [
        ("m", Multiply(spread(15) * 2), ("input",)),
        ("c", Centre(axes=(2,)), ("m",)),
        ("z", Standardize(axes=(2,), eps=1.0), ("c", "m")),
    ],
    "norm by root mean squares": lambda: [
        ("m", Multiply(spread(16)), ("input",)),
        ("z", Standardize(axes=(0,), eps=1e-3), ("m", "m")),
    ],
    "softmax": lambda: [
        ("m", Multiply(spread(17) * 3), ("input",)),
        ("z", Softmax(axes=(2,)), ("m",)),
    ],
    "softmax over two axes": lambda: [
        ("m", Multiply(spread(18) * 20), ("input",)),
        ("z", Softmax(axes=(0, 1)), ("m",)),
    ],
    "local response": lambda: [
        ("m", Multiply(spread(22) * 3), ("input",)),
        ("z", LocalResponse(size=3, alpha=0.7, beta=0.75, bias=0.5), ("m",)),
    ],
    "centre": lambda: one(Centre(axes=(0, 2))),
    "maxmin": lambda: one(MaxMin()),
    "maxmin of unlike boxes": lambda: [
        ("m", Multiply(spread(2)), ("input",)),
        ("z", MaxMin(), ("m",)),
    ],
    "inexact-pairs": lambda: [
        ("m", Multiply(spread(21)), ("input",)),
        ("z", InexactPairs(torch.tensor([1e-7, 3e-8])[:, None, None]), ("m",)),
    ],
    "fold": lambda: fold(0.4, 2.5),
    "maximum of unlike boxes": lambda: [
        ("a", Multiply(spread(3)), ("input",)),
        ("b", Multiply(spread(4)), ("input",)),
        ("z", Maximum(), ("a", "b")),
    ],
    "minimum of unlike boxes": lambda: [
        ("a", Multiply(spread(5)), ("input",)),
        ("b", Multiply(spread(6)), ("input",)),
        ("z", Minimum(), ("a", "b")),
    ],
    "slice": lambda: one(Slice(axis=2, start=1, stop=5, step=2)),
    "abs": lambda: [("m", Multiply(spread(7)), ("input",)), ("z", Abs(), ("m",))],
    "abs of three channels": lambda: [
        ("m", Multiply(spread(8)), ("input",)),
        ("z", Abs(channels=3), ("m",)),
    ],
    "gather": lambda: one(Gather(torch.tensor([2, 0, 3, 1]))),
    "gather of some": lambda: one(Gather(torch.tensor([3, 0, 4]), axis=2)),
    "l2-pool2d": lambda: [
        ("m", Multiply(spread(9)), ("input",)),
        ("z", L2Pool2d(kernel=(1, 2), stride=(2, 2)), ("m",)),
    ],
    "sort": lambda: [("m", Multiply(spread(10)), ("input",)), ("z", Sort(axis=1), ("m",))],
    "concat": lambda: two(Concat(axis=1)),
    "maximum": lambda: two(Maximum()),
    "minimum": lambda: two(Minimum()),
    "reduce-sum": lambda: one(ReduceSum(axes=(0, 2))),
    "reduce-mean": lambda: one(ReduceMean(axes=(1,), keepdims=True)),
    "mean of all": lambda: [
        ("m", ReduceMean(axes=(0, 1, 2)), ("input",)),
        ("z", Reshape(shape=(1,)), ("m",)),
    ],
}


def moves_balls(layer: Layer) -> bool:
    """Whether the layer stretches distances by a factor at most."""
    rules = rules_of(layer)
    return rules.affine is not None or rules.ball is not None


def headed(rows: Branches, seed: int = 0) -> Network:
    """The layers, flattened, and a dense head of 3 classes."""
    shapes = shape_of(rows)
    builder = Builder(SHAPE, seed)
    builder.rows = list(rows)
    builder.last, builder.shape = "z", shapes
    builder.flatten()
    builder.linear(3)
    return builder.build()


def shape_of(rows: Branches) -> tuple[int, ...]:
    shapes: dict[str, tuple[int, ...]] = {"input": SHAPE}
    for name, layer, inputs in rows:
        shapes[name] = layer.output_shape(*(shapes[source] for source in inputs))
    return shapes["z"]


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
