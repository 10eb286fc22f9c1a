"""Training's pass and verification's agree on every layer kind, given the same norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.layers.activations import (
    STEPS,
    AtLeast,
    AtMost,
    Clip,
    MaxMin,
    PReLU,
    ReLUTheta,
    Sigmoid,
    Softplus,
    Tanh,
)
from models.layers.base import DeployedLayer
from models.layers.curves import (
    CELU,
    ELU,
    GELU,
    SELU,
    STEEP,
    Atan,
    Cos,
    Erf,
    HardSwish,
    Mish,
    Power,
    SiLU,
    Sin,
    Softsign,
)
from models.layers.euclidean import L2Pool2d, Sort
from models.layers.joins import Concat, Maximum, Minimum, Product, ReduceMean, ReduceSum, Slice
from models.layers.kinds import (
    Abs,
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
    ReLU,
    Reshape,
    Shift,
)
from models.layers.normalization import Centre, LocalResponse, Softmax, Standardize
from models.layers.one_lipschitz import InexactPairs
from models.layers.reparametrized import OrthogonalConv2d, ResidualConv2d
from models.layers.shapes import Expand
from models.network import INPUT, Network
from tests.workers.training.bounds.graphs import generator, graph_of
from workers.training.bounds.ball_and_box import TrainingPass, start
from workers.training.training_graph import TrainingGraph
from workers.verification.clock import UNLIMITED
from workers.verification.forward.propagation import ForwardPass
from workers.verification.graph.affine import Norms
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.registry import LAYERS, rules_of
from workers.verification.rounding import Rounding

SHAPE = (4, 8, 8)
#: After the first convolution.
INNER = (4, 6, 6)
#: Layers of uploaded files alone.
UNTRAINED = {
    *(Centre, LocalResponse, Multiply, Divide, PReLU, Power, Product, Softmax, Sort, Standardize),
    *(*STEEP, *STEPS, InexactPairs),
}
#: Not monotone: training takes the ball alone, because the layer is 1-Lipschitz.
BALL_ALONE = {Abs, L2Pool2d}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed)) * 0.4


def kernel(out: int = 4, size: int = 3) -> Tensor:
    return normal(out, 4, size, size, seed=3)


def batch_norm() -> BatchNorm:
    bias, mean = normal(4, seed=2), normal(4, seed=3)
    return BatchNorm(normal(4, seed=1), bias, mean, normal(4, seed=4).abs() + 0.3)


#: Without padding: training takes the norms of whole rows at the border too, which is less tight.
#: What stands behind a convolution of 4 channels, 6 x 6; a join takes that before and after a ReLU.
ONE: dict[type[Layer], Callable[[], Layer]] = {
    AtLeast: lambda: AtLeast(normal(4, 1, 1)),
    Atan: Atan,
    AtMost: lambda: AtMost(normal(4, 1, 1)),
    AvgPool2d: lambda: AvgPool2d(kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1)),
    BatchNorm: batch_norm,
    CELU: lambda: CELU(alpha=0.5),
    Clip: lambda: Clip(low=-0.2, high=0.3),
    Cos: Cos,
    Conv2d: lambda: Conv2d(kernel(6), normal(6), stride=2),
    ELU: lambda: ELU(alpha=2.0),
    Erf: Erf,
    Expand: lambda: Expand(shape=INNER),
    GELU: lambda: GELU(approximate="tanh"),
    Gather: lambda: Gather(torch.tensor([4, 0, 2]), axis=1),
    HardSwish: HardSwish,
    LeakyReLU: lambda: LeakyReLU(slope=0.1),
    Linear: lambda: Linear(normal(8, 144), normal(8)),
    MaxMin: MaxMin,
    MaxPool2d: lambda: MaxPool2d(kernel=(3, 3), stride=(2, 2)),
    Mish: Mish,
    Normalize: lambda: Normalize(torch.full((4,), 0.4), torch.tensor([0.3, 0.5, 0.6, 0.8])),
    OrthogonalConv2d: lambda: OrthogonalConv2d(kernel(8, 2), normal(8), stride=2),
    Pad: lambda: Pad(padding=(1, 0, 2, 1), value=0.1),
    Permute: lambda: Permute(axes=(1, 2, 0)),
    ReLU: ReLU,
    ReLUTheta: lambda: ReLUTheta(normal(4, 1, 1).abs()),
    ReduceMean: lambda: ReduceMean(axes=(1, 2)),
    ReduceSum: lambda: ReduceSum(axes=(0,)),
    Reshape: lambda: Reshape(shape=(144,)),
    ResidualConv2d: lambda: ResidualConv2d(kernel(4, 1), torch.ones(4, 1, 1, 1)),
    Shift: lambda: Shift(normal(4, 1, 1)),
    SELU: SELU,
    SiLU: SiLU,
    Sigmoid: Sigmoid,
    Sin: Sin,
    Slice: lambda: Slice(axis=1, start=1, stop=5, step=2),
    Softplus: Softplus,
    Softsign: Softsign,
    Tanh: Tanh,
}
TWO: dict[type[Layer], Callable[[], Layer]] = {
    Add: Add,
    Concat: lambda: Concat(axis=0),
    Maximum: Maximum,
    Minimum: Minimum,
}


def network_of(kind: type[Layer]) -> Network:
    """Convolution, ReLU, the layer, ReLU, dense head."""
    rows: list[tuple[str, Layer, tuple[str, ...]]] = [
        ("conv", Conv2d(kernel(), normal(4, seed=9)), (INPUT,)),
        ("relu", ReLU(), ("conv",)),
    ]
    if kind is Linear:
        rows.append(("row", Reshape(shape=(144,)), ("relu",)))
    layer = (ONE | TWO)[kind]()
    rows.append(("layer", layer, ("relu", "conv") if kind in TWO else (rows[-1][0],)))
    rows.append(("last", ReLU(), ("layer",)))
    shapes = [INNER, INNER] if kind in TWO else [(144,) if kind is Linear else INNER]
    features = math.prod(layer.output_shape(*shapes))
    rows.append(("flat", Reshape(shape=(features,)), ("last",)))
    rows.append(("head", Linear(normal(3, features), normal(3)), ("flat",)))
    return Network(SHAPE, rows).to(torch.float64)


def verified(graph: TrainingGraph, step: GraphStep) -> GraphStep:
    """The step as verification has it before adjacent maps are fused, with training's norm."""
    assert isinstance(step.op, Layer)
    shape = graph.in_shapes[step.name]
    deployed = step.op.deployed(shape)
    if len(deployed) > 1:
        # Partial sums and their sum: the convolution that they are together.
        whole = step.op
        assert isinstance(whole, OrthogonalConv2d)
        deployed = (DeployedLayer(Conv2d(*whole.tensors(), stride=whole.stride)),)
    ((layer, _, _),) = deployed
    affine = rules_of(layer).affine
    if affine is None:
        return step
    return replace(
        step,
        op=affine(layer, shape),
        norms=Norms(float(graph.factor(step)), 0.0),
    )


def test_every_layer_kind_is_tried() -> None:
    assert set(LAYERS) - UNTRAINED - BALL_ALONE <= set(ONE) | set(TWO)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("kind", [*ONE, *TWO], ids=lambda kind: kind.kind)
@torch.no_grad()
def test_both_passes_agree(kind: type[Layer], norm: str) -> None:
    graph = graph_of(network_of(kind), steps=1)
    x = torch.rand(5, *SHAPE, generator=generator(1), dtype=torch.float64)
    epsilon = 0.4 if norm == "l2" else 0.02
    steps = [verified(graph, step) for step in graph.steps]
    theirs = ForwardPass(Rounding.ignored(), UNLIMITED).through(steps, start(x, epsilon, norm))
    ours = TrainingPass(graph).run(start(x, epsilon, norm))
    for name in ("centre", "lower", "upper", "radius"):
        torch.testing.assert_close(
            getattr(ours, name), getattr(theirs, name), rtol=1e-6, atol=1e-6, msg=name
        )


class Mirror(Layer):
    """x - 2 v (v . x), |v| = 1: a Householder reflection, deployed as a dense layer."""

    kind = "mirror"
    one_lipschitz = True

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        v = self.weight / self.weight.norm()
        return x - 2.0 * (x @ v)[:, None] * v

    def deployed(self, *shapes: tuple[int, ...]) -> tuple[DeployedLayer, ...]:
        return (DeployedLayer(Linear(self(torch.eye(len(self.weight))).T)),)


def test_a_layer_of_which_only_one_lipschitz_is_known_trains() -> None:
    mirror = Mirror(normal(256))
    network = Network(
        SHAPE,
        [
            ("flat", Reshape(shape=(256,)), (INPUT,)),
            ("mirror", mirror, ("flat",)),
            ("relu", ReLU(), ("mirror",)),
            ("head", Linear(normal(3, 256)), ("relu",)),
        ],
    )
    graph = graph_of(network)
    assert float(graph.lipschitz()) == 1.0
    x = torch.rand(5, *SHAPE, generator=generator(1))
    state = TrainingPass(graph).run(start(x, 0.5, "l2"))
    assert state.lower is not None
    assert state.upper is not None
    (state.upper - state.lower).sum().backward()
    assert mirror.weight.grad is not None
    assert bool(torch.isfinite(mirror.weight.grad).all())
    for seed in range(20):
        step = torch.randn(x.shape, generator=generator(seed))
        step = 0.5 * step / step.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        moved = torch.relu(mirror((x + step).flatten(1)))
        assert bool((moved >= state.lower - 1e-5).all())
        assert bool((moved <= state.upper + 1e-5).all())
        assert bool(((moved - state.centre).norm(dim=1) <= state.radius + 1e-5).all())
