"""The deviation of the deployed network: never beyond its bounds, and they are worth having."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.layers.activations import (
    Abs,
    AtLeast,
    AtMost,
    Clip,
    MaxMin,
    ReLUTheta,
    Sigmoid,
    Tanh,
)
from models.layers.base import Layer
from models.layers.curves import GELU, SELU, Atan, Cos, HardSwish, Mish, SiLU, Sin
from models.layers.joins import Add, Maximum, Minimum
from models.layers.kinds import LeakyReLU, Linear, ReLU
from models.layers.shapes import Expand
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from tests.workers.verification.deviation.worst_execution import worst_execution
from tests.workers.verification.networks import Builder, adversarial_float32, random_network
from tests.workers.verification.uploads.wide_networks import image_network
from workers.verification.backward.linear_form import LinearForm
from workers.verification.cascade.bound_table import BOUNDS
from workers.verification.clock import UNLIMITED
from workers.verification.deviation.budget import margin_budget
from workers.verification.deviation.deep import forward_errors
from workers.verification.deviation.walk import secants_of
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.graph_step import GraphStep
from workers.verification.layers.pairs.differences import SORTED
from workers.verification.problem import Problem
from workers.verification.protocol import Budget
from workers.verification.region import Region
from workers.verification.rounding import Rounding, exact_arithmetic

CLASSES = 6


def deep_network(
    seed: int, blocks: int = 4, *, scale: float = 1.0, activation: Callable[[], Layer] = ReLU
) -> Network:
    """Residual blocks of two convolutions; ``scale`` goes up in one layer and down in the next."""
    b = Builder((3, 8, 8), seed)
    b.conv(8, 3, padding=1)
    for _ in range(blocks):
        b.add(activation())
        before = b.last
        b.conv(8, 3, padding=1)
        first = b.rows[-1][1]
        b.add(activation())
        b.conv(8, 3, padding=1)
        second = b.rows[-1][1]
        with torch.no_grad():
            first.weight.mul_(scale)
            first.bias.mul_(scale)
            second.weight.div_(scale)
        b.add(Add(), b.last, before)
    b.add(activation())
    b.flatten()
    b.linear(40)
    b.add(activation())
    b.linear(CLASSES)
    return b.build()


def points(network: Network, seed: int, count: int) -> Tensor:
    shape = (count, *network.input_shape)
    return torch.from_numpy(np.random.default_rng(seed).random(shape).astype(np.float32))


def within(x: Tensor, epsilon: float, norm: str, generator: torch.Generator) -> Tensor:
    """A float32 point of the region around each row."""
    move = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    if norm == "linf":
        move = move.sign()
    length = move.flatten(1).norm(dim=1) if norm == "l2" else torch.ones(len(x)).double()
    moved = x.double() + move * (0.99 * epsilon / length).reshape(-1, *([1] * (x.dim() - 1)))
    near = moved.float()
    return torch.where((near.double() - x.double()).abs() <= move.abs() * epsilon, near, x)


def budgets(
    compiled: CompiledNetwork, x: Tensor, labels: Tensor, epsilon: float, norm: str
) -> Tensor:
    reach = torch.full((len(x),), epsilon, dtype=torch.float64)
    with exact_arithmetic():
        return margin_budget(compiled, Region(x, reach, norm, False), labels)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.to(torch.float64)
    return logits.gather(1, labels[:, None]) - logits


def exact(network: Network, x: Tensor) -> Tensor:
    """Logits in float64: off by 2^-29 of what float32 is."""
    twin = Network.from_description(network.description(), network.state_dict()).double()
    with torch.no_grad():
        return twin(x.double())


@pytest.mark.parametrize("activation", [GELU, SELU, Mish, Atan, Sin, Cos])
def test_smooth_layers_carry_the_budget_too(activation: Callable[[], Layer]) -> None:
    """As ONNX Runtime runs them; kernels may be off by 6e-7 (1 + |z|) each, and no more is lost."""
    network = deep_network(3, 3, activation=activation)
    runtime = OnnxRuntimeModel(export_onnx(network), network.input_shape)
    compiled = CompiledNetwork.compile(network)
    generator = torch.Generator().manual_seed(0)
    x = points(network, 1, 2)
    labels = exact(network, x).argmax(1)
    for epsilon in (0.0, 1e-4):
        lost = budgets(compiled, x, labels, epsilon, "linf")
        # By balls alone it is 0.3 and more.
        assert epsilon > 0.0 or bool((lost < 0.06).all())
        for _ in range(4):
            inputs = within(x, epsilon, "linf", generator)
            found = margins(torch.from_numpy(runtime(inputs.numpy())), labels)
            assert bool(((found - margins(exact(network, inputs), labels)).abs() <= lost).all())


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_deployed_margins_are_the_real_ones_up_to_the_budget(scale: float) -> None:
    """As ONNX Runtime runs the file, anywhere in the region."""
    network = deep_network(int(abs(np.log10(scale))), scale=scale)
    runtime = OnnxRuntimeModel(export_onnx(network), network.input_shape)
    compiled = CompiledNetwork.compile(network, norms=False)
    generator = torch.Generator().manual_seed(0)
    x = points(network, 1, 3)
    labels = exact(network, x).argmax(1)
    for epsilon in (0.0, 1e-4):
        lost = budgets(compiled, x, labels, epsilon, "linf")
        assert bool(torch.isfinite(lost).all())
        for _ in range(4):
            inputs = within(x, epsilon, "linf", generator)
            deployed = torch.from_numpy(runtime(inputs.numpy()))
            off = (margins(deployed, labels) - margins(exact(network, inputs), labels)).abs()
            assert bool((off <= lost).all())


@settings(max_examples=examples(20, 1_000))
@given(st.integers(0, 10_000), st.sampled_from([1e-6, 1.0, 1e6]), st.sampled_from(["l2", "linf"]))
def test_no_execution_leaves_its_budget(seed: int, scale: float, norm: str) -> None:
    """Errors at random, as large as allowed, in networks of every kind of layer."""
    network = random_network(seed, scale=scale)
    generator = torch.Generator().manual_seed(seed)
    compiled = CompiledNetwork.compile(network, norms=seed % 4 == 0)
    x = points(network, seed, 2)
    labels = exact(network, x).argmax(1)
    for epsilon in (0.0, 0.01):
        lost = budgets(compiled, x, labels, epsilon, norm)
        for _ in range(3):
            inputs = within(x, epsilon, norm, generator)
            with torch.no_grad():
                deployed = adversarial_float32(network, inputs, generator)
            off = (margins(deployed, labels) - margins(exact(network, inputs), labels)).abs()
            assert bool((off <= lost + 1e-13 * deployed.abs().max()).all())


@pytest.mark.parametrize("blocks", [2, 4])
def test_the_budget_is_what_the_worst_execution_takes_and_little_more(blocks: int) -> None:
    """At most 4 b, and no execution is beyond it: the worst one comes near b itself."""
    network = deep_network(blocks, blocks)
    compiled = CompiledNetwork.compile(network, norms=False)
    x = points(network, 0, 2)
    labels = exact(network, x).argmax(1)
    lost = budgets(compiled, x, labels, 1e-9, "l2")
    for row in range(len(x)):
        for other in range(CLASSES):
            if other != int(labels[row]):
                worst, b = worst_execution(compiled, x[row : row + 1], int(labels[row]), other)
                assert worst <= float(lost[row, other]) <= 4 * b
                assert worst > 0.5 * b


def sorted_network(seed: int, layer: type[Layer], width: int = 24) -> Network:
    """Dense layers, each sorted with another one of the same input, or pair by pair."""
    b = Builder((width,), seed)
    for _ in range(5):
        before = b.last
        b.linear(width)
        if layer is MaxMin:
            b.add(MaxMin())
        else:
            first = b.last
            b.rows.append((f"w{len(b.rows)}", Linear(torch.randn(width, width) / 5), (before,)))
            b.add(layer(), first, b.rows[-1][0])
    b.linear(CLASSES)
    return b.build()


@pytest.mark.parametrize("layer", [MaxMin, Maximum, Minimum])
def test_sorted_pairs_carry_the_budget(layer: type[Layer]) -> None:
    """No execution leaves it, near ties included, and where the order is known nothing is paid."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(examples(3, 50)):
        network = sorted_network(seed, layer)
        compiled = CompiledNetwork.compile(network)
        x = points(network, seed, 4)
        labels = exact(network, x).argmax(1)
        problem = Problem(compiled, True, torch.device("cpu"))
        for epsilon in (1e-9, 1e-3, 0.3):
            lost = budgets(compiled, x, labels, epsilon, "l2")
            region = Region(x, torch.full((4,), epsilon, dtype=torch.float64), "l2", False)
            with exact_arithmetic():
                forward = forward_errors(problem, region, torch.arange(4), UNLIMITED, torch.float64)
            share = 0.25 if epsilon < 1e-6 else 1.1
            assert bool((lost.amax(1) <= 2 * forward * share).all())
            for _ in range(4):
                inputs = within(x, epsilon, "l2", generator)
                with torch.no_grad():
                    deployed = adversarial_float32(network, inputs, generator)
                off = (margins(deployed, labels) - margins(exact(network, inputs), labels)).abs()
                assert bool((off <= lost + 1e-13 * deployed.abs().max()).all())


@pytest.mark.parametrize("layer", [MaxMin(), Maximum(), Minimum()], ids=lambda x: type(x).__name__)
def test_sorted_differences_hold_in_the_box(layer: Layer) -> None:
    """Rows on the result against rows on the inputs and what is paid."""
    generator = torch.Generator().manual_seed(0)
    inputs = 1 if isinstance(layer, MaxMin) else 2
    rule = SORTED
    shape = (2000, 2)
    for width in (1e-6, 0.1, 1.0):
        middle = [torch.randn(shape, generator=generator).double() for _ in range(inputs)]
        real = [m + width * torch.rand(shape, generator=generator).double() for m in middle]
        far = [width * torch.rand(shape, generator=generator).double() for _ in middle]
        boxes = [(m - f, m + width + f) for m, f in zip(middle, far, strict=True)]
        shares = rule.shares(layer, boxes)
        paid, off = rule.carried(shares, far, 2.0**-53)
        rows = torch.randn(layer(*real).shape, generator=generator).double()
        form = LinearForm(rows, tuple(rows.shape[1:]), None)
        back = rule.back(layer, shares, form)
        for _ in range(examples(20)):
            moves = [
                f * (2 * torch.rand(shape, generator=generator).double() - 1).sign() for f in far
            ]
            deployed = [r + m for r, m in zip(real, moves, strict=True)]
            change = layer(*deployed) - layer(*real)
            assert bool((change.abs() <= off + 1e-15).all())
            told = sum((b.coefficients * m).sum(1) for b, m in zip(back, moves, strict=True))
            rest = ((rows * change).sum(1) - told).abs()
            assert bool((rest <= (rows.abs() * paid).sum(1) + 1e-14).all())
        assert bool((shares != 0.5).any())
        places = rule.open(shares, inputs)
        assert bool((paid[~places] == 0).all())


def test_a_row_is_worth_no_more_than_its_length_around_an_image_too() -> None:
    """Circular convolutions of norm 1: the budget is the sum of what the layers round."""
    network = import_onnx_bytes(image_network(8, 4, layers=4).onnx)
    compiled = CompiledNetwork.compile(network)
    assert any(step.section is not None for step in compiled.steps)
    x = points(network, 0, 3)
    labels = exact(network, x).argmax(1)
    problem = Problem(compiled, True, torch.device("cpu"))
    for epsilon in (1e-9, 0.1):
        lost = budgets(compiled, x, labels, epsilon, "l2").amax(1)
        region = Region(x, torch.full((3,), epsilon, dtype=torch.float64), "l2", False)
        with exact_arithmetic():
            forward = forward_errors(problem, region, torch.arange(3), UNLIMITED, torch.float64)
        assert bool((lost <= 2 * forward).all())


def test_on_ten_layers_cheap_bounds_still_have_a_radius() -> None:
    """Where the budget carried forward is larger than the margin, and 4 b smaller."""
    network = deep_network(7, 4)
    compiled = CompiledNetwork.compile(network)
    x = points(network, 0, 4)
    labels = exact(network, x).argmax(1)
    clean = margins(exact(network, x), labels).scatter(1, labels[:, None], torch.inf).amin(1)
    wide = clean > 2 * budgets(compiled, x, labels, 0.0, "l2").amax(1)
    assert int(wide.sum()) >= 3
    problem = Problem(compiled, True, torch.device("cpu"))
    region = Region(x, torch.full((4,), 1e-9, dtype=torch.float64), "l2", True)
    for name in ("lipschitz", "ibp", "bcp", "local-lip"):
        verdict = BOUNDS[name].attempt(problem, region, labels, Budget(clean))
        assert bool(verdict.proved[wide].all()), name


def test_boxes_that_grow_where_balls_do_not_still_have_a_radius() -> None:
    """Orthogonal layers: rounding stays as it is in the ball, and grows by the 1-norms of the rows
    in boxes, beyond the margin. ``ibp`` knows boxes alone."""
    generator = torch.Generator().manual_seed(3)
    b = Builder((16,), 3)
    for _ in range(20):
        b.linear(16)
        with torch.no_grad():
            weight = b.rows[-1][1].weight
            weight.copy_(torch.linalg.qr(torch.randn(16, 16, generator=generator))[0])
        b.add(ReLU())
    b.linear(CLASSES)
    network = b.build()
    compiled = CompiledNetwork.compile(network)
    x = points(network, 0, 4)
    labels = exact(network, x).argmax(1)
    clean = margins(exact(network, x), labels).scatter(1, labels[:, None], torch.inf).amin(1)
    wide = clean > 2 * budgets(compiled, x, labels, 0.0, "l2").amax(1)
    assert int(wide.sum()) >= 3
    region = Region(x, torch.full((4,), 1e-15, dtype=torch.float64), "l2", False)
    problem = Problem(compiled, True, torch.device("cpu"))
    verdict = BOUNDS["ibp"].attempt(problem, region, labels, Budget(clean))
    assert bool(verdict.proved[wide].all())


def test_a_number_that_is_copied_deviates_as_often() -> None:
    """The length of a deviation was not multiplied by the root of the copies: kinks were missed."""
    count, largest = 4096, 2.0**20
    step = largest * 2.0**-24
    lead = 2 * count * step
    one = torch.eye(2)
    rows: list[tuple[str, Layer, tuple[str, ...]]] = [
        ("l1", Linear(torch.tensor([[largest, step, -largest]])), ("input",)),
        ("e", Expand(shape=(count,)), ("l1",)),
        ("l2", Linear(torch.ones(2, count), torch.tensor([lead, -count * step / 2])), ("e",)),
        *(("r2", ReLU(), ("l2",)), ("l3", Linear(one), ("r2",)), ("r3", ReLU(), ("l3",))),
        *(("l4", Linear(one), ("r3",)), ("r4", ReLU(), ("l4",))),
    ]
    bias = torch.tensor([-lead - count * step / 4, 0.0])
    rows.append(("out", Linear(torch.tensor([[1.0, -1.0], [0.0, 0.0]]), bias), ("r4",)))
    network = Network((3,), rows).eval()
    x, labels = torch.ones(1, 3), torch.tensor([0])
    run = OnnxRuntimeModel(export_onnx(network), network.input_shape)
    moved = margins(torch.from_numpy(run(x.numpy())).double(), labels) - margins(
        exact(network, x), labels
    )
    lost = budgets(CompiledNetwork.compile(network), x, labels, 0.0, "l2")
    assert float(moved.abs().amax()) > count * step / 4
    assert bool((moved.abs() <= lost).all())


@pytest.mark.parametrize(
    "layer",
    [
        ReLU(),
        LeakyReLU(slope=0.1),
        Abs(),
        Clip(low=-0.3, high=0.8),
        AtLeast(torch.tensor(0.2)),
        AtMost(torch.tensor(0.2)),
        ReLUTheta(torch.tensor(0.5)),
        Sigmoid(),
        Tanh(),
        *(GELU(), SELU(), SiLU(), HardSwish(), Mish(), Atan(), Sin(), Cos()),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_secants_hold_every_difference_in_the_box(layer: Layer) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, 400, 1, generator=generator, dtype=torch.float64) * 2
    width = 10.0 ** (-4 * torch.rand(400, 1, generator=generator, dtype=torch.float64))
    lower, upper = draw[0], draw[0] + width
    step = GraphStep("layer", layer, (0,), (1,))
    secants = secants_of(step, lower, upper, Rounding.sound(torch.float64))
    assert secants is not None
    for _ in range(examples(20)):
        a, b = (
            lower + width * torch.rand(width.shape, generator=generator, dtype=torch.float64)
            for _ in range(2)
        )
        difference = layer(b) - layer(a)
        ends = torch.stack([secants.low * (b - a), secants.high * (b - a)])
        error = 0.0 if secants.error is None else secants.error
        assert bool((difference <= ends.amax(0) + error + 1e-15).all())
        assert bool((difference >= ends.amin(0) - error - 1e-15).all())
