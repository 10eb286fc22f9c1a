"""The chained quadratic bound: any slopes and multipliers are valid, the best ones are tight."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.layers.kinds import Abs, Add, AvgPool2d, Layer, LeakyReLU, Linear, ReLU, Reshape
from models.network import Network
from tests.extent import examples
from tests.workers.verification.networks import (
    Builder,
    adversarial_float32,
    dense_network,
    random_network,
)
from tests.workers.verification.regions import points_of
from workers.verification.backward.coordinate_minimum import Cells, least_value
from workers.verification.backward.input_ball import InputBall
from workers.verification.backward.intermediate_bounds import unit_forms
from workers.verification.backward.linear_form import LinearForm
from workers.verification.backward.quadratic_pass import QuadraticPass
from workers.verification.bounds.alpha_crown import alpha_crown_margins
from workers.verification.bounds.crown import refined_pass
from workers.verification.bounds.crown_ball import crown_ball_margins, recast
from workers.verification.clock import Clock, OutOfTime
from workers.verification.forward.propagation import forward_step
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.layers.rules import TwoLines
from workers.verification.region import Region
from workers.verification.rounding import Rounding

F32, F64 = torch.float32, torch.float64
DOUBLE = (Rounding.sound(F64), F64)


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def reach(*epsilons: float) -> Tensor:
    return torch.tensor(epsilons, dtype=F64)


@dataclass
class Anything:
    """Slopes and multipliers drawn without any sense, two choices of multipliers at once."""

    generator: torch.Generator
    size: float

    def __call__(self, index: int, rows: LinearForm) -> tuple[Tensor, Tensor]:
        given = rows.coefficients
        noise = torch.randn(given.shape, generator=self.generator, dtype=F64)
        share = torch.rand(given.shape, generator=self.generator, dtype=F64)
        slopes = given * share.to(given) + (0.3 * noise * given.abs().mean()).to(given)
        own = torch.rand(len(given), 2, generator=self.generator, dtype=F64) * self.size
        own[:, 0] = 0.0
        return slopes, own.to(given.dtype)


def block(seed: int, activation: Layer) -> Network:
    """Convolutions with padding and stride, a residual sum, batch norm, an average pool."""
    b = Builder((2, 6, 6), seed)
    b.conv(3, 3, padding=1)
    b.batch_norm()
    b.add(activation)
    before = b.last
    b.conv(3, 3, padding=1)
    b.add(activation)
    b.conv(3, 3, padding=1)
    b.add(Add(), b.last, before)
    b.add(activation)
    b.add(AvgPool2d(kernel=2, stride=2))
    b.conv(3, 2)
    b.add(activation)
    b.flatten()
    b.linear(4)
    return b.build()


@given(
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([F32, F64]),
    slopes=st.sampled_from([(0.0, 1.0), (0.1, 1.0), (-1.0, 1.0), (1.0, 1.0)]),
    width=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
    size=st.sampled_from([0.0, 1e-4, 1.0, 100.0]),
    scale=st.sampled_from([1e-20, 1.0, 1e12]),
)
@settings(max_examples=examples(15), deadline=None)
def test_no_point_of_a_box_lies_below_the_minimum_and_the_minimum_is_attained(
    seed: int,
    dtype: torch.dtype,
    slopes: tuple[float, float],
    width: float,
    size: float,
    scale: float,
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64).to(dtype)

    # Boxes on either side of 0 and across; centres inside, and now and then outside.
    middle = draw(1, 40) * scale
    lower = middle - width * draw(1, 40).abs() * scale
    upper = middle + width * draw(1, 40).abs() * scale
    centre = torch.where(draw(1, 40) > 1.5, lower - 0.1 * scale, middle)
    c, g = draw(3, 40), draw(3, 40)
    own = draw(3, 2).abs() * size / scale
    square = draw(3, 2).abs() * size / scale
    cells = Cells.of(TwoLines(*slopes), (lower, upper), centre, Rounding.sound(dtype))
    rows = LinearForm(c, (40,), torch.zeros(3, dtype=torch.int64))
    found, held = least_value(cells.picked(rows), c, g, own, square, Rounding.sound(dtype))
    zc, cc, gc = (x.double()[None] for x in (centre[0], c, g))

    def phi(z: Tensor) -> Tensor:
        return torch.where(z > 0, slopes[1] * z, slopes[0] * z)

    share = torch.linspace(0, 1, 501, dtype=F64)[:, None, None]
    z = lower.double() * (1 - share) + upper.double() * share
    z = torch.cat([z, torch.zeros(1, 1, 40, dtype=F64)]).clamp(lower.double(), upper.double())
    dz, dr = z - zc, phi(z) - phi(zc)
    for column in range(2):
        one, two = own[:, column].double()[:, None], square[:, column].double()[:, None]
        value = cc * dr - gc * dz + 0.5 * (one + two) * dz.square() - 0.5 * two * dr.square()
        exact = value.amin(0).sum(1)
        assert bool((found[:, column] <= exact + 1e-12 * held[:, column]).all())
        assert bool((found[:, column] >= exact - (1e-3 * held[:, column] + 1e-30)).all())


@pytest.mark.parametrize("dtype", [F32, F64])
@given(
    seed=st.integers(0, 10**6),
    activation=st.sampled_from([ReLU(), LeakyReLU(slope=0.2), Abs()]),
    norm=st.sampled_from(["l2", "linf"]),
    clip=st.booleans(),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
)
@settings(max_examples=examples(3), deadline=None)
def test_any_slopes_and_multipliers_give_a_valid_bound(
    dtype: torch.dtype, seed: int, activation: Layer, norm: str, clip: bool, size: float
) -> None:
    """On the logits and, as patches, on neurons of the last convolution."""
    network = block(seed, activation)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 2, 6, 6, generator=generator)
    region = Region(x, reach(0.3, 0.05), norm, clip)
    compiled = CompiledNetwork.compile(network)
    labels = torch.tensor([0, 1])
    backward, _ = refined_pass(compiled, region, labels, Rounding.sound(dtype), dtype, "crown")
    choose = Anything(generator, size)
    last = len(compiled.steps)
    shape = tuple(compiled.steps[-1].shape)
    rows = LinearForm(
        torch.randn(6, *shape, generator=generator).to(dtype), shape, torch.arange(6) % 2
    )
    places = tuple(torch.tensor(axis) for axis in ([0, 1], [0, 2], [1, 0], [0, 1]))
    inner = max(step.sources[0] for step in compiled.steps if isinstance(step.op, type(activation)))
    start, patches, _, _ = unit_forms(backward, inner, places)
    found = {}
    for passed in (backward, recast(backward, *DOUBLE)):
        kind = passed.dtype
        quadratic = QuadraticPass(passed)
        for value, form in ((last, rows), (start, patches)):
            cast = form.with_coefficients(form.coefficients.to(kind))
            found[kind, value] = quadratic.lower_bound(value, cast, choose, 2), form
    for point in points_of(region, generator, 8):
        values = [point.double()]
        for step in compiled.steps:
            values.append(forward_step(step, [values[source] for source in step.sources]))
        for (_, value), (bound, form) in found.items():
            product = form.coefficients.double() * form.pick(values[value])
            assert bool((product.flatten(1).sum(1)[:, None] >= bound).all())


@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    excess=st.sampled_from([1e-3, 0.3, 5.0]),
    steps=st.sampled_from([0, 2, 60]),
    conv=st.booleans(),
)
@settings(max_examples=examples(8), deadline=None)
def test_the_term_at_the_input_is_below_every_point_of_the_ball_and_exact_for_the_best_excess(
    seed: int, size: float, excess: float, steps: int, conv: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    b = Builder((1, 3, 4), seed)
    b.conv(2, 3, padding=1)
    if not conv:
        b = Builder((12,), seed)
        b.linear(9)
    b.flatten()
    b.linear(3)
    step = CompiledNetwork.compile(b.build()).steps[0]
    shape = step.affine.in_shape
    c = torch.randn(4, *shape, generator=generator, dtype=F64)
    # The hard case too: nothing along the direction in which the map is largest.
    matrix = step.affine.linear(torch.eye(12, dtype=F64).reshape(12, *shape)).flatten(1)
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    flat = c.flatten(1)
    flat[3] -= (flat[3] @ vectors[:, -1]) * vectors[:, -1]
    k = size * torch.rand(4, generator=generator, dtype=F64)
    radius = torch.rand(4, generator=generator, dtype=F64) + 0.1
    rows = LinearForm(c, shape, torch.zeros(4, dtype=torch.int64))

    def bound(excess: Tensor) -> Tensor:
        end = InputBall(excess, steps)
        return end.least(step, rows, k, radius, Rounding.sound(F64)).nan_to_num(-torch.inf)

    points = torch.randn(4, 3000, 12, generator=generator, dtype=F64)
    points[:, 0], points[:, 1], points[:, 2] = -flat, vectors[:, -1], -vectors[:, -1]
    points *= (radius[:, None] / points.norm(dim=2))[..., None]
    points[:, :500] *= torch.rand(4, 500, 1, generator=generator, dtype=F64)
    value = (points * flat[:, None]).sum(2)
    value = value - 0.5 * k[:, None] * (points @ matrix).square().sum(2)
    assert bool((bound(torch.full((4,), excess, dtype=F64)) <= value.amin(1)).all())
    if steps < 60 or size in (0.0, 1e-6):
        return
    # The dual is exact in one number: the best excess of a fine grid leaves little.
    grid = torch.logspace(-4, 4, 60, dtype=F64)
    best = torch.stack([bound(torch.full((4,), float(e), dtype=F64)) for e in grid]).amax(0)
    top = k[:, None] * values[-1] * (1.0 + torch.logspace(-6, 6, 1000, dtype=F64))
    along = (flat @ vectors).square()
    spread = top[..., None] - k[:, None, None] * values
    dual = -0.5 * top * radius[:, None] ** 2 - 0.5 * (along[:, None] / spread).sum(2)
    exact = dual.amax(1)
    assert bool((best >= exact - 0.2 * exact.abs()).all())


@given(
    dtype=st.sampled_from([F32, F64]),
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["l2", "l2", "linf"]),
    clip=st.booleans(),
    epsilon=st.sampled_from([0.0, 1e-3, 0.1, 1.0]),
    scale=st.sampled_from([1.0, 1e-4, 1e4]),
)
@settings(max_examples=examples(3), deadline=None)
def test_margins_hold_for_every_float32_evaluation(
    dtype: torch.dtype, seed: int, norm: str, clip: bool, epsilon: float, scale: float
) -> None:
    network = random_network(seed, scale=scale)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 2, 8, 8, generator=generator)
    region = Region(x, reach(epsilon, 2 * epsilon, epsilon / 3), norm, clip)
    labels = torch.tensor([0, 1, 2])
    compiled = CompiledNetwork.compile(network)
    bounds = crown_ball_margins(compiled, region, labels, Rounding.sound(dtype), dtype)
    for point in points_of(region, generator, 4):
        for value in (adversarial_float32(network, point, generator), network(point).double()):
            margins = value.gather(1, labels[:, None]) - value
            margins = margins.scatter(1, labels[:, None], torch.inf)
            assert bool((margins >= bounds).all())


@given(seed=st.integers(0, 10**6), clip=st.booleans(), epsilon=st.sampled_from([0.1, 0.4]))
@settings(max_examples=examples(3), deadline=None)
def test_brute_force_on_two_inputs_finds_no_lower_margin(
    seed: int, clip: bool, epsilon: float
) -> None:
    network = dense_network([2, 12, 12, 3], seed, scale=2.0)
    x = torch.rand(4, 2, generator=torch.Generator().manual_seed(seed))
    labels = network(x).argmax(1)
    region = Region(x, torch.full((4,), epsilon, dtype=F64), "l2", clip)
    bounds = crown_ball_margins(CompiledNetwork.compile(network), region, labels, *DOUBLE)
    angle = torch.linspace(0, 2 * torch.pi, 300)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], 1) * epsilon
    exact = network.double()
    for row in range(4):
        points = torch.cat([x[row] + share * circle for share in torch.linspace(0, 1, 15)])
        points = points.clamp(0, 1) if clip else points
        logits = exact(points.double())
        margins = logits[:, labels[row], None] - logits
        margins[:, labels[row]] = torch.inf
        assert bool((margins.amin(0) >= bounds[row] - 1e-9).all())


def test_networks_without_activations_or_changes_are_bounded_exactly() -> None:
    x, labels = torch.full((2, 3), 0.5), torch.tensor([1, 1])
    region = Region(x, reach(0.0, 0.2), "l2", clip=False)
    weight = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    linear = Network((3,), [("o", Linear(weight, torch.tensor([0.0, 9.0])), ("input",))])
    bounds = crown_ball_margins(CompiledNetwork.compile(linear), region, labels, *DOUBLE)
    assert bounds[:, 0].tolist() == pytest.approx([6.5, 6.5 - 0.6], abs=1e-4)
    # All neurons dead: the second class leads by 1 everywhere.
    dead = Network(
        (3,),
        [
            ("a", Linear(torch.ones(4, 3), torch.full((4,), -1e4)), ("input",)),
            ("r", ReLU(), ("a",)),
            ("o", Linear(1e6 * torch.ones(2, 4), torch.tensor([0.0, 1.0])), ("r",)),
        ],
    )
    bounds = crown_ball_margins(CompiledNetwork.compile(dead), region, labels, *DOUBLE)
    assert bounds[:, 0].tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    constant = Network(
        (3,),
        [
            ("r", ReLU(), ("input",)),
            ("f", Reshape(shape=(3,)), ("r",)),
            ("o", Linear(torch.zeros(2, 3), torch.tensor([0.0, 1.0])), ("f",)),
        ],
    )
    bounds = crown_ball_margins(CompiledNetwork.compile(constant), region, labels, *DOUBLE)
    assert bounds[:, 0].tolist() == pytest.approx([1.0, 1.0], abs=1e-4)


def test_rows_in_small_blocks_get_what_they_get_together(monkeypatch: pytest.MonkeyPatch) -> None:
    network = dense_network([4, 8, 8, 3], 3)
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(3))
    labels = network(x).argmax(1)
    region = Region(x, reach(0.1, 0.3, 0.6), "l2", True)
    compiled = CompiledNetwork.compile(network)
    together = crown_ball_margins(compiled, region, labels, *DOUBLE)
    monkeypatch.setitem(
        crown_ball_margins.__globals__["final_forms"].__globals__, "rows_at_once", lambda *_: 2
    )
    apart = crown_ball_margins(compiled, region, labels, *DOUBLE)
    assert bool(((together > 0) == (apart > 0)).all())
    assert torch.allclose(together, apart, rtol=1e-3, atol=1e-3)


def isometric(count: int) -> tuple[CompiledNetwork, Region, Tensor]:
    """Orthogonal weights: the ball alone is good, lines lose it; twice what norms prove."""
    generator = torch.Generator().manual_seed(7)
    b = Builder((20,), 7)
    for size in (20, 20, 3):
        square = torch.linalg.qr(torch.randn(20, 20, generator=generator)).Q
        b.add(Linear(square[:size], 0.1 * torch.randn(size, generator=generator)))
        if size > 3:
            b.add(ReLU())
    network = b.build()
    x = torch.rand(12, 20, generator=generator)[:count]
    logits = network(x).topk(2, dim=1)
    epsilon = 1.5 * (logits.values[:, 0] - logits.values[:, 1]).double()
    compiled = CompiledNetwork.compile(network)
    return compiled, Region(x, epsilon, "l2", False), logits.indices[:, 0]


def test_what_is_proved_before_time_is_over_counts() -> None:
    case = isometric(5)
    looks = count()
    timed = Clock(1e9, now=lambda: float(next(looks)))
    full = crown_ball_margins(*case, *DOUBLE, clock=timed)
    seen = []
    for stop in np.linspace(0, next(looks), 5):
        ticks = count()
        clock = Clock(float(stop), now=lambda ticks=ticks: float(next(ticks)))
        try:
            found = crown_ball_margins(*case, *DOUBLE, clock=clock)
        except OutOfTime:
            continue
        assert bool((found <= full + 1e-9).all())
        seen.append(float(found.clamp_max(0).sum()))
    assert len(seen) >= 3
    assert seen == sorted(seen)
    assert seen[0] < seen[-1]


def test_ball_and_box_decide_what_straight_lines_do_not() -> None:
    case = isometric(12)
    lines = alpha_crown_margins(*case, *DOUBLE)
    both = crown_ball_margins(*case, *DOUBLE)
    assert (both > 0).all(1).sum() > (lines > 0).all(1).sum()
