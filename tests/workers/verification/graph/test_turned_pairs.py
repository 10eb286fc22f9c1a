"""Sorted pairs between rotations: the same function, orthogonal maps, bounds that hold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.layers.activations import MaxMin
from models.layers.base import Layer
from models.layers.euclidean import Sort
from models.layers.kinds import Add, Reshape
from models.network import Network
from tests.extent import examples
from tests.workers.verification.networks import Builder, adversarial_float32
from tests.workers.verification.regions import points_of
from workers.verification.backward.adjoint import adjoint
from workers.verification.backward.intermediate_bounds import unit_forms
from workers.verification.backward.linear_form import LinearForm
from workers.verification.backward.quadratic_pass import QuadraticPass
from workers.verification.bounds.alpha_crown_intermediate import alpha_crown_intermediate_margins
from workers.verification.bounds.crown import cap_margins, crown_margins, refined_pass
from workers.verification.bounds.crown_ball import crown_ball_margins
from workers.verification.forward.propagation import forward_step, propagate
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.turned_pairs import PairTurn, with_turned_pairs
from workers.verification.region import Region
from workers.verification.rounding import Rounding

F32, F64 = torch.float32, torch.float64
DOUBLE = (Rounding.sound(F64), F64)
BOUNDS = [crown_margins, cap_margins, alpha_crown_intermediate_margins, crown_ball_margins]


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def sorting(kind: str, seed: int) -> Network:
    """Two layers that sort, of each layout: halves, groups along an axis, images, residual sums."""
    b = Builder((2, 4, 4) if kind == "image" else (3,), seed)
    if kind == "image":
        b.conv(6, 3, padding=1)
        b.add(MaxMin())
        before = b.last
        b.conv(6, 3, padding=1, stride=1)
        b.add(Add(), b.last, before)
        b.add(Sort(axis=0, descending=True))
        b.conv(4, 3, stride=2)
        b.add(MaxMin())
        b.flatten()
        b.linear(3)
        return b.build()
    for size in (12, 8):
        b.linear(size)
        if kind == "pairs":
            b.add(MaxMin())
        else:
            groups = {"groups": (size // 4, 4), "pairs in rows": (size // 2, 2)}[kind]
            b.add(Reshape(shape=groups))
            b.add(Sort(axis=1, descending=size == 8))
            b.add(Reshape(shape=(size,)))
    b.linear(3)
    return b.build()


KINDS = ["pairs", "pairs in rows", "groups", "image"]


def values_of(compiled: CompiledNetwork, x: Tensor) -> list[Tensor]:
    values = [x.double()]
    for step in compiled.steps:
        values.append(forward_step(step, [values[source] for source in step.sources]))
    return values


@given(
    size=st.integers(2, 8),
    axis=st.integers(0, 2),
    descending=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=examples(15), deadline=None)
def test_a_sorting_network_of_turned_pairs_sorts(
    size: int, axis: int, descending: bool, seed: int
) -> None:
    shape = [2, 3, 2]
    shape[axis] = size
    layer = Sort(axis=axis, descending=descending)
    flat = Reshape(shape=(math.prod(shape),))
    network = Network(tuple(shape), [("s", layer, ("input",)), ("f", flat, ("s",))])
    compiled = CompiledNetwork.compile(network)
    turned = with_turned_pairs(compiled)
    assert not any(isinstance(step.op, Sort) for step in turned.steps)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))
    expected = layer(x.double()).flatten(1)
    assert torch.allclose(values_of(turned, x)[-1], expected, rtol=0, atol=1e-14)
    # Long axes stay as they are.
    long = Network((9,), [("s", Sort(), ("input",))])
    assert with_turned_pairs(known := CompiledNetwork.compile(long)) is known


@pytest.mark.parametrize("back", [False, True])
def test_the_turn_is_orthogonal_and_knows_its_rows(back: bool) -> None:
    zero = torch.zeros((), dtype=F64)
    op = PairTurn((5,), (5,), zero, zero, 0.0, pairs=2, back=back, least_own_terms=3.0)
    eye = torch.eye(5, dtype=F64)
    matrix = op.linear(eye).T
    assert torch.allclose(matrix @ matrix.T, eye, atol=1e-15)
    assert torch.allclose(op.adjoint(eye), matrix, atol=1e-15)
    assert torch.allclose(op.absolute(eye).T, matrix.abs(), atol=1e-15)
    inverse = PairTurn((5,), (5,), zero, zero, 0.0, pairs=2, back=not back)
    assert torch.allclose(inverse.linear(op.linear(eye)), eye, atol=1e-15)
    assert op.absolute_norm() >= float(torch.linalg.matrix_norm(matrix.abs(), 2))
    rows = LinearForm(eye, (5,), None)
    assert torch.equal(adjoint(op, rows).coefficients, op.adjoint(eye))
    first, second, one, two = op.partners(torch.arange(5))
    made = one[:, None] * eye[first] + two[:, None] * eye[second]
    assert torch.equal(made, matrix)


@pytest.mark.parametrize("kind", KINDS)
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["l2", "linf"]),
    dtype=st.sampled_from([F32, F64]),
)
@settings(max_examples=examples(2), deadline=None)
def test_every_value_is_in_its_enclosure_and_unit_rows_are_what_they_stand_for(
    kind: str, seed: int, norm: str, dtype: torch.dtype
) -> None:
    network = sorting(kind, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, *network.input_shape, generator=generator)
    region = Region(x, torch.tensor([0.3, 0.02], dtype=F64), norm, True)
    compiled = CompiledNetwork.compile(network)
    turned = with_turned_pairs(compiled)
    rounding = Rounding.sound(dtype)
    backward, _ = refined_pass(compiled, region, torch.tensor([0, 1]), rounding, dtype, "crown")
    loose: list = []
    propagate(turned, region, rounding=rounding, dtype=dtype, refine=lambda *_: None, values=loose)
    units = []
    for index, step in enumerate(turned.steps):
        if isinstance(step.op, PairTurn) and not step.op.back:
            shape = step.shape
            places = (torch.arange(4) % 2, torch.arange(4) % shape[0])
            places += tuple(torch.arange(4) % size for size in shape[1:])
            units.append((index + 1, places, unit_forms(backward, index + 1, places)))
    for point in points_of(region, generator, 6):
        values = values_of(turned, point)
        for held in (backward.values, loose):
            for value, state in zip(values, held, strict=True):
                moved = (value - state.centre.double()).flatten(1).norm(dim=1)
                assert bool((moved <= state.radius).all())
                assert bool((state.lower <= value).all() & (value <= state.upper).all())
        for value, places, (source, rows, constant, slack) in units:
            parts = rows.coefficients.double() * rows.pick(values[source])
            found = parts.flatten(1).sum(1) + constant
            assert bool(((found - values[value][places]).abs() <= slack + 1e-14).all())
    # What sorting itself knows of its boxes is not lost.
    for step, state in zip(turned.steps, loose[1:], strict=True):
        if step.also is not None and isinstance(step.also.op, Layer):
            before = loose[step.also.sources[0]]
            assert bool((state.lower >= step.also.op(before.lower)).all())
            assert bool((state.upper <= step.also.op(before.upper)).all())


@pytest.mark.parametrize("bound", BOUNDS)
@given(
    kind=st.sampled_from(KINDS[:3]),
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["l2", "linf"]),
    clip=st.booleans(),
    epsilon=st.sampled_from([0.02, 0.2]),
)
@settings(max_examples=examples(2), deadline=None)
def test_brute_force_finds_no_lower_margin(
    bound: object, kind: str, seed: int, norm: str, clip: bool, epsilon: float
) -> None:
    network = sorting(kind, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 3, generator=generator)
    labels = network(x).argmax(1)
    region = Region(x, torch.full((2,), epsilon, dtype=F64), norm, clip)
    assert callable(bound)
    found = bound(CompiledNetwork.compile(network), region, labels, *DOUBLE)
    line = torch.linspace(-1, 1, 31)
    cube = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    if norm == "l2":
        cube = torch.cat([cube[cube.norm(dim=1) <= 1], torch.nn.functional.normalize(cube + 1e-9)])
    exact = network.double()
    for row in range(2):
        points = x[row].double() + epsilon * cube.double() * (1 - 1e-7)
        logits = exact(points.clamp(0, 1) if clip else points)
        margins = logits[:, labels[row], None] - logits
        margins[:, labels[row]] = torch.inf
        assert bool((margins.amin(0) >= found[row] - 1e-12).all())


@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([F32, F64]),
)
@settings(max_examples=examples(4), deadline=None)
def test_margins_hold_for_every_float32_evaluation(
    seed: int, scale: float, kind: str, dtype: torch.dtype
) -> None:
    network = sorting(kind, seed)
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.rand(2, *network.input_shape, generator=generator)
    labels = network(x).argmax(1)
    region = Region(x, torch.tensor([1e-5, 0.1], dtype=F64) * scale, "l2", False)
    compiled = CompiledNetwork.compile(network)
    for bound in (crown_margins, crown_ball_margins):
        found = bound(compiled, region, labels, Rounding.sound(dtype), dtype)
        for point in points_of(region, generator, 3):
            for logits in (adversarial_float32(network, point, generator), network(point).double()):
                margins = logits.gather(1, labels[:, None]) - logits
                margins = margins.scatter(1, labels[:, None], torch.inf)
                assert bool((margins >= found).all())


@given(
    seed=st.integers(0, 10**6),
    own=st.sampled_from([0.0, 0.3, 3.0]),
    dtype=st.sampled_from([F32, F64]),
)
@settings(max_examples=examples(15), deadline=None)
def test_no_pair_lies_below_the_bound_and_the_pair_minimum_is_attained(
    seed: int, own: float, dtype: torch.dtype
) -> None:
    """Of one row on max and min over a disc, for any slopes and any multiplier."""
    generator = torch.Generator().manual_seed(seed)
    network = Network((2,), [("m", MaxMin(), ("input",))])
    x = torch.randn(1, 2, generator=generator)
    region = Region(x, torch.tensor([0.7], dtype=F64), "l2", False)
    compiled = with_turned_pairs(CompiledNetwork.compile(network))
    backward, _ = refined_pass(
        compiled, region, torch.tensor([0]), Rounding.sound(dtype), dtype, "crown"
    )
    row = torch.randn(1, 2, generator=generator).to(dtype)
    slopes = torch.randn(1, 2, generator=generator).to(dtype)
    quadratic = QuadraticPass(backward)

    def choose(index: int, rows: LinearForm) -> tuple[Tensor, Tensor]:
        return slopes, torch.full((1, 1), own, dtype=dtype)

    found = quadratic.fall(3, LinearForm(row, (2,), None), choose)[0, 0]
    angle = torch.linspace(0, 2 * torch.pi, 400, dtype=F64)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    points = x.double() + 0.7 * torch.cat([share * circle for share in torch.linspace(0, 1, 40)])
    layer = MaxMin()
    moved = layer(points) - layer(x.double())
    exact = (moved * row.double()).sum(1)
    assert float(found) <= float(exact.amin()) + 1e-12
    # v and u apart: each attains its minimum on the disc; what is subtracted is the ball's share.
    half = 0.5**0.5
    p, q, g_v, g_u = (float(x) for x in (*row[0], *slopes[0]))
    a, b = (points - x.double()).T
    at, dv, du = (points[:, 0] - points[:, 1]).abs() * half, (a - b) * half, (a + b) * half
    bend = at - float((x[0, 0] - x[0, 1]).abs()) * half
    of_v = (p - q) * half * bend - g_v * dv + 0.5 * own * dv.square()
    of_u = ((p + q) * half - g_u) * du + 0.5 * own * du.square()
    ball = 0.7 * (g_v**2 + g_u**2) ** 0.5 + 0.5 * own * 0.7**2
    assert float(found) == pytest.approx(float(of_v.amin() + of_u.amin()) - ball, abs=0.02)


@pytest.mark.parametrize("dtype", [F32, F64])
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["l2", "linf"]),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
)
@settings(max_examples=examples(3), deadline=None)
def test_any_slopes_and_multipliers_give_a_valid_bound(
    dtype: torch.dtype, kind: str, seed: int, norm: str, size: float
) -> None:
    network = sorting(kind, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, *network.input_shape, generator=generator)
    region = Region(x, torch.tensor([0.3, 0.05], dtype=F64), norm, True)
    backward, _ = refined_pass(
        CompiledNetwork.compile(network),
        region,
        torch.tensor([0, 1]),
        Rounding.sound(dtype),
        dtype,
        "crown",
    )

    def choose(index: int, rows: LinearForm) -> tuple[Tensor, Tensor]:
        given = rows.coefficients
        share = 2.4 * torch.rand(given.shape, generator=generator) - 1.2
        noise = 0.3 * torch.randn(given.shape, generator=generator).to(given)
        own = size * torch.rand(len(given), 2, generator=generator).to(given)
        own[:, 0] = 0.0
        return given * share.to(given) + noise * given.abs().mean(), own

    steps = backward.compiled.steps
    shape = steps[-1].shape
    rows = torch.randn(4, *shape, generator=generator).to(dtype)
    form = LinearForm(rows, shape, torch.arange(4) % 2)
    found = QuadraticPass(backward).lower_bound(len(steps), form, choose, 2)
    for point in points_of(region, generator, 8):
        value = values_of(backward.compiled, point)[-1]
        product = (rows.double() * form.pick(value)).flatten(1).sum(1)
        assert bool((product[:, None] >= found).all())
