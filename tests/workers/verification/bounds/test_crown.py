"""Backward bounds: sound for every float32 evaluation, never below what they start from."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.kinds import ReLU
from tests.extent import examples
from tests.workers.verification.networks import Builder, adversarial_float32, random_network
from tests.workers.verification.regions import points_of
from workers.verification.backward.adjoint import adjoint
from workers.verification.backward.concretization import Concretization
from workers.verification.backward.linear_form import LinearForm, PatchGrid
from workers.verification.bounds.bcp import bcp_margins
from workers.verification.bounds.crown import cap_margins, crown_margins
from workers.verification.forward.box_ball import ball_box_maximum, quick_maximum
from workers.verification.graph.affine_maps import Convolution
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.region import Region
from workers.verification.rounding import Rounding, unit_roundoff


@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["l2", "linf"]),
    clip=st.booleans(),
    epsilon=st.sampled_from([1e-9, 1e-3, 0.05, 0.5]),
    scale=st.sampled_from([1.0, 1e-4, 1e4]),
    margins=st.sampled_from([crown_margins, cap_margins]),
)
@settings(max_examples=examples(40), deadline=None)
def test_margins_hold_for_every_float32_evaluation(
    dtype: torch.dtype,
    seed: int,
    norm: str,
    clip: bool,
    epsilon: float,
    scale: float,
    margins: object,
) -> None:
    network = random_network(seed, scale=scale)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 2, 8, 8, generator=generator)
    reach = torch.tensor([epsilon, 2 * epsilon, epsilon / 3], dtype=torch.float64)
    region = Region(x, reach, norm, clip)
    compiled = CompiledNetwork.compile(network)
    labels = torch.tensor([0, 1, 2])
    with torch.no_grad():
        lowest = margins(compiled, region, labels, Rounding.sound(dtype), dtype)  # type: ignore[operator]
        for point in points_of(region, generator, 4):
            for value in (adversarial_float32(network, point, generator), network(point).double()):
                found = value.gather(1, labels[:, None]) - value
                found = found.scatter(1, labels[:, None], torch.inf)
                assert bool((found >= lowest).all())


def test_crown_decides_at_least_what_ball_and_box_decide() -> None:
    for seed in range(12):
        network = random_network(seed)
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(3, 2, 8, 8, generator=generator)
        region = Region(x, torch.full((3,), 0.05, dtype=torch.float64), "l2", True)
        compiled = CompiledNetwork.compile(network)
        arithmetic = (Rounding.sound(torch.float64), torch.float64)
        labels = torch.tensor([0, 1, 2])
        with torch.no_grad():
            before = bcp_margins(compiled, region, labels, *arithmetic)
            after = crown_margins(compiled, region, labels, *arithmetic)
        assert bool(((after > 0) >= (before > 0)).all())


def test_rows_alone_or_in_a_batch_give_the_same_bounds() -> None:
    for seed in range(12):
        network = random_network(seed)
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(3, 2, 8, 8, generator=generator)
        epsilon = torch.tensor([0.2, 0.03, 0.5], dtype=torch.float64)
        compiled = CompiledNetwork.compile(network)
        arithmetic = (Rounding.sound(torch.float64), torch.float64)
        labels = torch.tensor([0, 1, 2])
        with torch.no_grad():
            together = crown_margins(
                compiled, Region(x, epsilon, "linf", True), labels, *arithmetic
            )
            for row in range(3):
                one = slice(row, row + 1)
                alone = crown_margins(
                    compiled, Region(x[one], epsilon[one], "linf", True), labels[one], *arithmetic
                )
                assert torch.allclose(alone[0], together[row], rtol=1e-9, atol=1e-9)


@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
    rounds=st.integers(0, 4),
)
@settings(max_examples=examples(80), deadline=None)
def test_quick_maximum_is_never_below_the_exact_one(
    dtype: torch.dtype, seed: int, rounds: int
) -> None:
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 60))
    w = torch.from_numpy(random.standard_normal((4, size)) * 10.0 ** random.uniform(-3, 3)).to(
        dtype
    )
    lower = -torch.from_numpy(random.random((4, size)) * (random.random((4, size)) < 0.7)).to(dtype)
    upper = torch.from_numpy(random.random((4, size)) * (random.random((4, size)) < 0.7)).to(dtype)
    rho = torch.from_numpy(10.0 ** random.uniform(-3, 1, 4))
    corner = torch.maximum(-lower, upper).double().norm(dim=1) * (1 + 1e-9)
    quick, _ = quick_maximum(w, lower, upper, rho, corner, rounds)
    exact = ball_box_maximum(w.double(), lower.double(), upper.double(), rho)
    size_of_it = (w.abs() * torch.maximum(-lower, upper)).sum(1).double()
    assert bool((quick >= exact - 1e-12 * size_of_it).all())
    ball = rho * w.double().norm(dim=1)
    assert bool((quick <= ball * (1 + 1e-3)).all())


@given(dtype=st.sampled_from([torch.float32, torch.float64]), seed=st.integers(0, 10**6))
@settings(max_examples=examples(40), deadline=None)
def test_rows_go_back_through_the_transpose_of_every_convolution(
    dtype: torch.dtype, seed: int
) -> None:
    random = np.random.default_rng(seed)
    channels, out = int(random.choice([1, 2, 3, 20])), int(random.integers(1, 4))
    size = tuple(int(n) for n in random.integers(7, 12, 2))
    b = Builder((channels, *size), seed)
    b.conv(
        out,
        int(random.integers(1, 4 if seed % 3 == 0 else 6)),
        stride=tuple(int(n) for n in random.integers(1, 4, 2)),
        padding=tuple(int(n) for n in random.integers(0, 3, 4)),
        # A kernel of up to 3 taps, so that two steps of dilation still fit the least image.
        dilation=int(random.integers(1, 3)) if seed % 3 == 0 else 1,
    )
    b.add(ReLU())
    b.flatten()
    op = CompiledNetwork.compile(b.build()).steps[0].op
    assert isinstance(op, Convolution)
    x = torch.zeros(4, *op.in_shape, dtype=torch.float64, requires_grad=True)
    y = torch.from_numpy(random.standard_normal((4, *op.out_shape)))
    (exact,) = torch.autograd.grad(op.linear(x), x, y)
    found = adjoint(op, LinearForm(y.to(dtype), op.out_shape, None)).coefficients
    assert torch.allclose(found.double(), exact, atol=1e-5 if dtype == torch.float32 else 1e-12)


@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
    epsilon=st.sampled_from([1e-9, 0.01, 0.3, 2.0]),
    clip=st.booleans(),
    alone=st.booleans(),
)
@settings(max_examples=examples(40), deadline=None)
def test_the_least_value_in_a_box_is_below_the_exact_one_by_few_roundings(
    dtype: torch.dtype, seed: int, epsilon: float, clip: bool, alone: bool
) -> None:
    random = np.random.default_rng(seed)
    size, count = int(random.integers(1, 5000)), 6
    batch = 1 if alone else 2
    x = torch.from_numpy(random.random((batch, size)) * (random.random((batch, size)) < 0.8))
    region = Region(x.float(), torch.full((batch,), epsilon, dtype=torch.float64), "linf", clip)
    rounding = Rounding.sound(dtype)
    lower, upper = region.box(dtype)
    flat = random.standard_normal((count, size)) * 10.0 ** random.uniform(-12, 12, (count, 1))
    coefficients = torch.from_numpy(flat).to(dtype)
    sample = None if alone else torch.arange(count) // 3
    end = Concretization(region, lower, upper, rounding, dtype, rounds=2)
    found = end.least(LinearForm(coefficients, (size,), sample))
    places = [0] * count if sample is None else sample.tolist()
    for row, number, place in zip(coefficients.double(), found, places, strict=True):
        low, high = lower[place].double(), upper[place].double()
        ends = torch.where(row > 0, low, high)
        # Products of two float32 numbers are exact in float64, those of float64 are rounded.
        exact = math.fsum((row * ends).tolist())
        corner = torch.maximum(low.abs(), high.abs()).norm() * row.norm()
        unit = unit_roundoff(dtype)
        assert float(number) <= exact + float(corner) * (unit if dtype == torch.float64 else 0.0)
        room = max(200 * unit, 5e-12)
        assert exact - float(number) <= room * float(corner) + 1e-30


@given(seed=st.integers(0, 10**6))
@settings(max_examples=examples(60), deadline=None)
def test_compact_rows_are_the_same_rows_and_nothing_outside_the_map(seed: int) -> None:
    random = np.random.default_rng(seed)
    size, extent, step, grid = (
        tuple(int(n) for n in random.integers(low, high, 2))
        for low, high in ((3, 12), (1, 12), (1, 3), (1, 6))
    )
    origin = tuple(-int(random.integers(0, n)) for n in extent)
    count = int(random.integers(1, 6))
    i, j = (torch.from_numpy(random.integers(0, n, count)) for n in grid)
    patch_grid = PatchGrid(i, j, grid, step, origin, extent, size)
    rows = LinearForm(torch.randn(count, 2, *extent), (2, *size), None, patch_grid)
    found = rows.compact()
    assert torch.equal(found.dense().coefficients, rows.dense().coefficients)
    if found.patch_grid is not None:
        assert torch.equal(found.masked().coefficients, found.coefficients)
