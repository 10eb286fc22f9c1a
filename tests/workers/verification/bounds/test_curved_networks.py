"""Networks of curved activations, products, layer norms and attention: no input of the region is
below what bounds say.

The judge is ONNX Runtime, on the exported file: corners, random points and where gradients lead.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.layers.activations import Sigmoid
from models.layers.curves import SELU
from models.layers.joins import Product, ReduceMean, ReduceSum
from models.layers.kinds import Add, Layer, Linear, Multiply, Permute, ReLU, Reshape
from models.layers.normalization import Centre, Softmax, Standardize
from models.layers.shapes import Expand
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from tests.workers.verification.layers.boxes import CURVED
from tests.workers.verification.layers.cases import moves_balls
from tests.workers.verification.networks import Builder
from workers.verification.bounds.alpha_crown import alpha_crown_margins
from workers.verification.bounds.bcp import bcp_margins
from workers.verification.bounds.crown import cap_margins, crown_margins
from workers.verification.bounds.crown_ball import crown_ball_margins
from workers.verification.bounds.interval import interval_margins
from workers.verification.bounds.lipschitz import lipschitz_radius
from workers.verification.bounds.local_lipschitz import local_margins
from workers.verification.bounds.zonotope import zonotope_margins
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding

#: Of layers that move a ball by a factor; of all.
OF_BALLS: list[Callable[..., Tensor]] = [local_margins, crown_ball_margins]
OF_ALL: list[Callable[..., Tensor]] = [
    *(interval_margins, bcp_margins, crown_margins, cap_margins),
    *(zonotope_margins, alpha_crown_margins),
]


def network_of(seed: int) -> Network:
    """Two dense layers with another activation each, and a gate in between for odd seeds."""
    b = Builder((6,), seed)
    b.linear(12)
    b.add(CURVED[seed % len(CURVED)])
    if seed % 2:
        before = b.last
        b.add(ReduceMean(axes=(0,), keepdims=True))
        b.add(Sigmoid())
        b.add(Expand(shape=(12,)))
        b.add(Product(), before, b.last)
    b.linear(10)
    with torch.no_grad():
        layer = b.rows[-1][1]
        for parameter in layer.parameters():
            parameter.mul_(2.0)
    b.add(CURVED[(3 * seed + 5) % len(CURVED)])
    b.linear(3)
    return b.build()


def normalised(seed: int) -> Network:
    """Two dense layers with a layer norm and an activation each; by turns the operator's norm,
    nodes, and root mean squares, over all numbers or over groups, with a residual sum."""
    b = Builder((6,), seed)
    for width in (12, 8):
        b.linear(width)
        axes = (0,)
        if seed % 2:
            b.add(Reshape(shape=(2, width // 2)))
            axes = (1,)
        before = b.last
        if seed % 3 < 2:
            b.add(Centre(axes=axes))
        b.add(Standardize(axes=axes, eps=1e-3), b.last, b.last if seed % 3 else before)
        if seed % 2:
            b.add(Reshape(shape=(width,)))
        b.add(Multiply(torch.linspace(0.5, 1.5, width)))
        last = b.last
        b.add(CURVED[(seed + width) % len(CURVED)] if seed % 4 == 3 else ReLU())
        b.add(Add(), last, b.last)
    b.linear(3)
    return b.build()


def attention(seed: int) -> Network:
    """Three rows of four numbers: products with each other, a softmax, sums weighted by it."""
    b = Builder((6,), seed)
    b.linear(12)
    b.add(Reshape(shape=(3, 4)))
    x = b.last

    def times(first: tuple[int, ...], left: str, second: tuple[int, ...], right: str) -> None:
        whole = tuple(max(pair) for pair in zip(first, second, strict=True))
        sides = []
        for shape, value in ((first, left), (second, right)):
            b.add(Reshape(shape=shape), value)
            b.add(Expand(shape=whole), b.last)
            sides.append(b.last)
        b.add(Product(), *sides)
        b.add(ReduceSum(axes=(1,)), b.last)

    b.add(Permute(axes=(1, 0)), x)
    times((3, 4, 1), x, (1, 4, 3), b.last)
    b.add(Softmax(axes=(seed % 2,)), b.last)
    times((3, 3, 1), b.last, (1, 3, 4), x)
    b.add(Add(), x, b.last)
    b.add(Reshape(shape=(12,)), b.last)
    b.shape = (12,)
    b.linear(3)
    return b.build()


def least_margins(network: Network, region: Region, labels: Tensor) -> Tensor:
    """The least margins [batch, classes] that ONNX Runtime was seen to have in the region."""
    deployed = OnnxRuntimeModel(export_onnx(network), network.input_shape)
    generator = torch.Generator().manual_seed(0)
    lower, upper = region.box(torch.float64)
    double = Network.from_description(network.description(), network.state_dict()).double()
    epsilon = float(region.epsilon[0])
    found = torch.full((len(region.x), 3), torch.inf, dtype=torch.float64)

    def inside(point: Tensor) -> Tensor:
        moved = point.clamp(lower, upper) - region.x.double()
        if region.norm == "l2":
            moved = moved * (epsilon / moved.norm(dim=1, keepdim=True).clamp_min(epsilon))
        point = (region.x.double() + moved * (1 - 1e-5)).float()
        return point.double().clamp(lower, upper)

    for target in range(3):
        for start in range(12):
            noise = torch.randn(region.x.shape, generator=generator, dtype=torch.float64)
            point = inside(region.x.double() + 3 * epsilon * (noise.sign() if start % 2 else noise))
            for _ in range(6):
                logits = torch.from_numpy(deployed(point.float().numpy())).double()
                found = torch.minimum(found, logits.gather(1, labels[:, None]) - logits)
                at = point.clone().requires_grad_(True)
                with torch.enable_grad():
                    out = double(at)
                    aim = (out[:, target] - out.gather(1, labels[:, None])[:, 0]).sum()
                    (step,) = torch.autograd.grad(aim, at)
                step = (
                    step.sign()
                    if region.norm == "linf"
                    else step / step.norm(dim=1, keepdim=True).clamp_min(1e-9)
                )
                point = inside(point + 0.7 * epsilon * step)
    return found.scatter(1, labels[:, None], torch.inf)


@pytest.mark.parametrize("make", [network_of, normalised, attention])
@pytest.mark.parametrize("seed", range(examples(4, 60)))
@torch.no_grad()
def test_no_point_of_the_region_is_below_a_bound(make: Callable[[int], Network], seed: int) -> None:
    network = make(seed)
    norm = ("linf", "l2")[seed // 2 % 2]
    x = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed))
    labels = network(x).argmax(1)
    epsilon = 0.05 if norm == "linf" else 0.15
    if make is not network_of:
        epsilon /= 3
    region = Region(x, torch.full((3,), epsilon, dtype=torch.float64), norm, True)
    compiled = CompiledNetwork.compile(network)
    seen = least_margins(network, region, labels)
    balls = all(moves_balls(network.layer(node.name)) for node in network.nodes)
    best = torch.full_like(seen, -torch.inf)
    for bound in [*OF_ALL, *(OF_BALLS if balls else [])]:
        for dtype in (torch.float32, torch.float64):
            margins = bound(compiled, region, labels, Rounding.sound(dtype), dtype)
            assert bool((margins.scatter(1, labels[:, None], torch.inf) <= seen).all()), bound
            best = torch.maximum(best, margins)
    # The bounds are not empty: the best one is near what was seen.
    gaps = (seen - best)[torch.isfinite(seen)]
    assert float(gaps.median()) < 0.5 * float(seen[torch.isfinite(seen)].abs().max()) + 0.1
    if balls:
        radius = lipschitz_radius(
            compiled,
            x,
            labels,
            norm=norm,
            rounding=Rounding.sound(torch.float64),
            dtype=torch.float64,
        )
        certain = radius >= epsilon
        assert bool((seen[certain] > 0).all())


@torch.no_grad()
def test_a_scale_that_overflows_is_seen_behind_a_small_weight() -> None:
    rows: list[tuple[str, Layer, tuple[str, ...]]] = [
        ("a", Linear(torch.tensor([[1e36]])), ("input",)),
        ("b", SELU(alpha=1.0, gamma=1000.0), ("a",)),
        ("c", Multiply(torch.tensor(1e-30)), ("b",)),
        ("d", Linear(torch.tensor([[-1e-10], [0.0]]), torch.tensor([1.0, 0.0])), ("c",)),
    ]
    network = Network((1,), rows).eval()
    x, label = torch.zeros(1, 1), torch.tensor([0])
    assert not bool(torch.isfinite(network(torch.ones(1, 1))).all())
    region = Region(x, torch.ones(1, dtype=torch.float64), "linf", True)
    compiled = CompiledNetwork.compile(network)
    for bound in [*OF_ALL, *OF_BALLS]:
        for dtype in (torch.float32, torch.float64):
            margins = bound(compiled, region, label, Rounding.sound(dtype), dtype)
            assert not bool((margins[0, 1] > 0).item()), bound
