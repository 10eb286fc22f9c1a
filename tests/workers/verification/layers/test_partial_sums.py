"""Chains of partial sums are recognised as the one matrix that they are, and nothing else is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from models.layers.base import Layer
from models.layers.joins import ReduceMean, ReduceSum
from models.layers.kinds import Add, Conv2d, Linear, Multiply, Permute, ReLU, Reshape, Shift
from models.layers.one_lipschitz import NormalizedHead, OrthogonalChannels
from models.layers.partial_sums import in_partial_sums
from models.network import Network
from workers.verification.bounds.lipschitz import lipschitz_constant, lipschitz_radius
from workers.verification.forward.margins import logit_enclosure
from workers.verification.forward.propagation import forward_step, propagate
from workers.verification.graph.affine import Affine
from workers.verification.graph.affine_maps import Convolution
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.reductions import Reduction
from workers.verification.norms.spectral import materialize
from workers.verification.region import Region
from workers.verification.rounding import Rounding

F64 = torch.float64
Rows = list[tuple[str, Layer, tuple[str, ...]]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def chain(
    weight: Tensor, bias: Tensor | None, places: tuple[int, ...], sizes: tuple[int, ...]
) -> Rows:
    """The deployed layers as rows of a network; the last is called ``z``."""
    rows: Rows = []
    for part in in_partial_sums(weight, bias, places, sizes):
        assert part.inputs is not None
        inputs = tuple("input" if source == 0 else str(source) for source in part.inputs)
        rows.append((part.name or "z", part.layer, inputs))
    return rows


def network_of(rows: Rows, shape: tuple[int, ...], classes: int = 3) -> Network:
    """The rows, flattened, and a dense head."""
    shapes: dict[str, tuple[int, ...]] = {"input": shape}
    for name, layer, inputs in rows:
        shapes[name] = layer.output_shape(*(shapes[source] for source in inputs))
    size = math.prod(shapes["z"])
    flat = ("flat", Reshape(shape=(size,)), ("z",))
    return Network(shape, [*rows, flat, ("out", Linear(normal(classes, size)), ("flat",))]).eval()


def affine_steps(compiled: CompiledNetwork) -> list[Affine]:
    return [step.op for step in compiled.steps if isinstance(step.op, Affine)]


@pytest.mark.parametrize("sizes", [(24,), (6, 4), (12, 2), (2, 12), (4, 3, 2), (2, 2, 3, 2)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_chain_is_one_map_with_the_roundings_of_its_parts(
    sizes: tuple[int, ...], bias: bool
) -> None:
    weight, added = normal(5, 24), normal(5) if bias else None
    network = network_of(chain(weight, added, (3, 2), sizes), (24, 3, 2))
    compiled = CompiledNetwork.compile(network)
    (op,) = affine_steps(compiled)
    assert isinstance(op, Convolution)
    assert op.geometry.groups == 1
    assert torch.equal(op.weight[:, :, 0, 0], weight.double())
    x = normal(4, 24, 3, 2).double()
    exact = torch.einsum("oi,bihw->bohw", weight.double(), x)
    exact = exact + (0.0 if added is None else added.double()[:, None, None])
    assert torch.allclose(op.apply(x), exact, atol=1e-12)
    # A product, the sums of its block and of each level, the bias; as many for our own at least.
    steps = sizes[0] + sum(size - 1 for size in sizes[1:])
    assert steps + bias <= op.terms <= steps + 6
    assert op.own_terms >= 24
    assert compiled.steps[0].norms is not None
    largest = float(torch.linalg.matrix_norm(weight.double(), 2))
    assert largest <= compiled.steps[0].norms.spectral <= largest * (1 + 1e-7)


@torch.no_grad()
def test_a_head_in_partial_sums_is_the_head() -> None:
    layer = NormalizedHead(normal(7, 48), normal(7))
    network = Network((48,), [("a", layer, ("input",))]).deployed()
    assert len(network.nodes) > 3
    compiled = CompiledNetwork.compile(network)
    assert not affine_steps(compiled)
    expected = normal(7, 48).double()
    expected = (expected / expected.norm(dim=1, keepdim=True)).float().double()
    assert torch.equal(compiled.head.weight, expected)
    assert torch.equal(compiled.head.bias, normal(7).double())
    assert compiled.head.terms < 24


def broken(case: str) -> Rows:
    """A chain that is not one matrix, or is read in between."""
    rows = chain(normal(4, 8), None, (2, 2), (4, 2))
    # partial: Conv2d of 2 groups; levels: [2, 4, 2, 2]; z: sum over axis 0.
    (_, conv, _), (_, reshape, _), (_, total, _) = rows
    first, view, last = (
        ("partial", conv, ("input",)),
        ("levels", reshape, ("partial",)),
        ("z", total, ("levels",)),
    )
    made: dict[str, Callable[[], Rows]] = {
        "other axis": lambda: [
            first,
            ("levels", Reshape(shape=(4, 2, 2, 2)), ("partial",)),
            ("z", ReduceSum(axes=(1,)), ("levels",)),
        ],
        "mean": lambda: [first, view, ("z", ReduceMean(axes=(0,)), ("levels",))],
        "two axes": lambda: [first, view, ("z", ReduceSum(axes=(0, 2)), ("levels",))],
        "half of the groups": lambda: [
            ("partial", Conv2d(normal(8, 2, 1, 1), groups=4), ("input",)),
            view,
            last,
        ],
        "not all levels": lambda: [
            ("partial", Conv2d(normal(16, 2, 1, 1), groups=4), ("input",)),
            ("levels", Reshape(shape=(2, 2, 4, 2, 2)), ("partial",)),
            ("z", ReduceSum(axes=(0,)), ("levels",)),
        ],
        "read before the sum": lambda: [
            first,
            view,
            ("sum", total, ("levels",)),
            ("other", ReduceSum(axes=(1,)), ("levels",)),
            ("first", Reshape(shape=(16,)), ("sum",)),
            ("side", Reshape(shape=(8,)), ("other",)),
            ("matrix", Linear(normal(8, 16)), ("first",)),
            ("z", Add(), ("matrix", "side")),
        ],
        "axis kept": lambda: [
            first,
            view,
            ("sum", ReduceSum(axes=(0,), keepdims=True), ("levels",)),
            ("turned", Permute(axes=(1, 2, 0, 3)), ("sum",)),
            ("z", Multiply(normal(2, 1, 2)), ("turned",)),
        ],
        "activation inside": lambda: [
            first,
            ("relu", ReLU(), ("partial",)),
            ("levels", reshape, ("relu",)),
            last,
        ],
        "another order": lambda: [
            first,
            ("turned", Permute(axes=(1, 0, 2)), ("partial",)),
            ("levels", reshape, ("turned",)),
            last,
        ],
    }
    return made[case]()


@pytest.mark.parametrize(
    "case",
    [
        *("other axis", "mean", "two axes", "half of the groups", "not all levels"),
        *("read before the sum", "axis kept", "activation inside", "another order"),
    ],
)
@torch.no_grad()
def test_what_only_looks_like_a_chain_is_taken_step_by_step(case: str) -> None:
    network = network_of(broken(case), (8, 2, 2))
    compiled = CompiledNetwork.compile(network)
    assert any(isinstance(op, Reduction) for op in affine_steps(compiled))
    x = normal(5, 8, 2, 2)
    values = [x.double()]
    for step in compiled.steps:
        values.append(forward_step(step, [values[source] for source in step.sources]))
    logits = values[-1].flatten(1) @ compiled.head.weight.T + compiled.head.bias
    assert torch.allclose(logits, network.double()(x.double()), atol=1e-9)


@pytest.mark.parametrize(
    "window",
    [
        {"padding": 1, "stride": 3},
        {"padding": (0, 2, 0, 0), "stride": 3},
        {"size": 3, "padding": 1},
    ],
    ids=["padding alone", "padding on one side", "window beyond the image"],
)
@torch.no_grad()
def test_one_place_is_a_matrix_only_where_the_window_is_that_place(window: dict[str, Any]) -> None:
    """A 1 x 1 window with padding and a stride may see no pixel at all: then z is the biases."""
    size = window.pop("size", 1)
    conv = Conv2d(normal(8, 4, size, size), normal(8), groups=2, **window)
    rows: Rows = [
        ("partial", conv, ("input",)),
        ("levels", Reshape(shape=(2, 4)), ("partial",)),
        ("sum", ReduceSum(axes=(0,)), ("levels",)),
        ("bent", ReLU(), ("sum",)),
        ("z", Add(), ("sum", "bent")),
    ]
    network = network_of(rows, (8, 1, 1))
    compiled = CompiledNetwork.compile(network)
    x = normal(5, 8, 1, 1)
    values = [x.double()]
    for step in compiled.steps:
        values.append(forward_step(step, [values[source] for source in step.sources]))
        assert tuple(values[-1].shape[1:]) == step.shape
    logits = values[-1].flatten(1) @ compiled.head.weight.T + compiled.head.bias
    assert torch.allclose(logits, network.double()(x.double()), atol=1e-9)
    assert all(math.isfinite(op.bias_norm()) for op in affine_steps(compiled))


@torch.no_grad()
def test_scales_before_and_behind_a_chain_are_fused_with_it() -> None:
    weight = normal(4, 8)
    rows = [
        ("before", Multiply(normal(8, 1, 1)), ("input",)),
        *(
            (n, layer, ("before",) if i == ("input",) else i)
            for n, layer, i in chain(weight, normal(4), (2, 2), (4, 2))
        ),
    ]
    rows = [(("chain" if n == "z" else n), layer, i) for n, layer, i in rows]
    rows.append(("z", Shift(normal(4, 1, 1)), ("chain",)))
    network = network_of(rows, (8, 2, 2))
    compiled = CompiledNetwork.compile(network)
    (op,) = affine_steps(compiled)
    assert op.terms < 24 <= op.own_terms + 16
    x = normal(3, 8, 2, 2)
    found = op.apply(x.double()).flatten(1) @ compiled.head.weight.T
    assert torch.allclose(found, network.double()(x.double()), atol=1e-9)


def in_any_order(numbers: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 sum over the last axis, one by one in a random order, or by halves."""
    order = torch.randperm(numbers.shape[-1], generator=generator)
    numbers = numbers[..., order]
    total = numbers[..., 0]
    for index in range(1, numbers.shape[-1]):
        total = total + numbers[..., index]
    return total


@pytest.mark.parametrize("sizes", [(64,), (8, 8), (4, 4, 4), (16, 4)])
@torch.no_grad()
def test_float32_sums_in_any_order_lie_in_the_enclosure(sizes: tuple[int, ...]) -> None:
    """Hard cases for float32: large products that cancel, small ones beside a large one."""
    generator = torch.Generator().manual_seed(0)
    block, *levels = sizes
    groups = math.prod(levels)
    for trial in range(9):
        weight = torch.randn(4, 64, generator=generator)
        if trial % 3 == 0:
            weight = weight * 10.0 ** torch.randint(-3, 4, (4, 64), generator=generator)
        if trial % 3 == 1:
            weight[:, 0], weight[:, 1:] = 1.0, 2.0**-24 * (1 + 2.0**-10)
        x = torch.ones(1, 64) if trial % 3 == 1 else torch.rand(1, 64, generator=generator)
        network = network_of(chain(weight, None, (1, 1), sizes), (64, 1, 1), classes=4)
        compiled = CompiledNetwork.compile(network)
        products = (weight * x).reshape(4, groups, block)
        parts = in_any_order(products, generator)
        for count in levels:
            parts = in_any_order(parts.reshape(4, count, -1).transpose(1, 2), generator)
        head = compiled.head.weight
        deployed = head @ parts.reshape(4).double()
        region = Region(x.reshape(1, 64, 1, 1), torch.zeros(1, dtype=F64), "l2", False)
        for ball, box in ((True, False), (False, True), (True, True)):
            for dtype in (torch.float32, F64):
                rounding = Rounding.sound(dtype)
                state = propagate(
                    compiled, region, rounding=rounding, dtype=dtype, ball=ball, box=box
                )
                logits, reach = logit_enclosure(compiled.head, state, rounding)
                assert bool(((deployed - logits[0]).abs() <= reach[0]).all())


@torch.no_grad()
def test_our_own_float32_evaluation_counts_all_channels() -> None:
    """With 64 blocks of 64 it sums 4096 numbers one after another, whatever is deployed."""
    weight = torch.full((2, 4096), 2.0**-24)
    weight[:, 0] = 1.0
    network = network_of(chain(weight, None, (1, 1), (64, 64)), (4096, 1, 1), classes=2)
    op = affine_steps(CompiledNetwork.compile(network))[0]
    assert op.terms < 140
    gamma = Rounding.sound(torch.float32).own_gamma(op.own_terms)
    assert gamma >= 4096 * 2.0**-24


@torch.no_grad()
def test_an_orthogonal_layer_of_many_channels_costs_few_roundings() -> None:
    """What a radius loses to float32, against the same matrix deployed as one convolution."""
    matrix = torch.linalg.qr(normal(256, 256).double())[0].float()
    layer = OrthogonalChannels(matrix[:, :, None, None], normal(256))
    shape = (256, 2, 2)
    rows: Rows = [("z", layer, ("input",))]
    blocked = network_of(rows, shape).deployed()
    whole = network_of([("z", Conv2d(*layer.tensors()), ("input",))], shape)
    x, labels = torch.rand(6, *shape), torch.zeros(6, dtype=torch.int64)
    labels = whole(x).argmax(1)
    lost = []
    for network in (blocked, whole):
        compiled = CompiledNetwork.compile(network)
        assert lipschitz_constant(compiled) <= 1.001
        found = [
            lipschitz_radius(compiled, x, labels, norm="l2", rounding=rounding, dtype=F64)
            for rounding in (Rounding.ignored(), Rounding.sound(F64))
        ]
        offset = float(compiled.steps[0].op.terms) if compiled.steps else 0.0
        lost.append((offset, float((found[0] - found[1]).min())))
    (few, little), (many, much) = lost
    assert few < 45 < 256 < many
    assert 0 < little < much


def test_a_matrix_at_every_place_has_the_norm_of_the_matrix() -> None:
    from workers.verification.norms.dense import dense_norm
    from workers.verification.norms.spectral import ConvGeometry, conv_norm

    weight = normal(30, 20).double()
    found = conv_norm(weight[:, :, None, None], ConvGeometry((20, 20)))
    assert found == dense_norm(weight / 4) * 4 or found == pytest.approx(dense_norm(weight))
    geometry = ConvGeometry((4, 3))
    whole = materialize(lambda x: geometry.apply(x, weight[:, :, None, None]), (20, 4, 3))
    assert found >= float(torch.linalg.matrix_norm(whole, 2)) * (1 - 1e-13)
    # Padding makes more places; a stride leaves some out: neither changes the largest stretch.
    padded = ConvGeometry((4, 3), padding=(1, 0, 0, 2))
    assert conv_norm(weight[:, :, None, None], padded) == pytest.approx(found, rel=1e-6)
