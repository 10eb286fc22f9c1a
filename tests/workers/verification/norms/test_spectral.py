"""Operator norm bounds: never below the true norm, and close to it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.extent import examples, part
from tests.workers.verification.uploads.wide_networks import orthogonal_kernel
from workers.verification.norms import circulant, dense, spectral
from workers.verification.norms.dense import dense_norm
from workers.verification.norms.spectral import (
    ConvGeometry,
    absolute_norm,
    conv_norm,
    materialize,
    power_iteration_norm,
)


def true_norm(weight: torch.Tensor, geometry: ConvGeometry) -> float:
    shape = (weight.shape[1] * geometry.groups, *geometry.size)
    matrix = materialize(lambda x: geometry.apply(x, weight.double()), shape)
    return float(torch.linalg.matrix_norm(matrix, 2))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[torch.Tensor, ConvGeometry]:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (3, 1), (2, 3)]))
    padding = draw(st.tuples(*[st.integers(0, 4)] * 4))
    smallest = [
        max(1, d * (k - 1) + 1 - p) for d, k, p in zip(dilation, kernel, padding[:2], strict=True)
    ]
    size = tuple(s + draw(st.integers(0, 6)) for s in smallest)
    out, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**31))
    weight = torch.randn(
        out * groups, per_group, *kernel, generator=torch.Generator().manual_seed(seed)
    )
    if draw(st.booleans()):
        weight = weight.abs()
    return weight, ConvGeometry(size, stride, padding, dilation, groups)


@given(convolutions(), st.booleans())
@settings(max_examples=examples(100), deadline=None)
def test_convolution_bound_is_never_below_the_materialised_norm(
    case: tuple[torch.Tensor, ConvGeometry], exact: bool
) -> None:
    weight, geometry = case
    limit = spectral.EXACT_SIDE
    try:
        spectral.EXACT_SIDE = limit if exact else 0
        bound = conv_norm(weight, geometry)
    finally:
        spectral.EXACT_SIDE = limit
    norm = true_norm(weight, geometry)
    assert bound >= norm * (1 - 1e-12)
    if exact:
        assert bound <= norm * (1 + 1e-6) + 1e-12


def shifted_circulant_norm(
    blocks: torch.Tensor, grid: tuple[int, int], shift: tuple[float, float]
) -> float:
    """Largest singular value over every frequency, symbol by symbol."""
    largest = 0.0
    for row, column in itertools.product(*map(range, grid)):
        turns = [
            (place + moved) / size
            for place, moved, size in zip((row, column), shift, grid, strict=True)
        ]
        taps = [torch.arange(t, dtype=torch.float64) for t in blocks.shape[2:]]
        angle = -2 * math.pi * (turns[0] * taps[0][:, None] + turns[1] * taps[1])
        symbol = (blocks * torch.exp(1j * angle)).sum((2, 3))
        largest = max(largest, float(torch.linalg.matrix_norm(symbol, 2)))
    return largest


#: Every kind of kernel in every size; the slice has every kind where it is cheap.
CIRCULANTS = [
    (kind, *size)
    for size in ((3, 5, 3), (1, 1, 5), (9, 12, 6), (40, 33, 3), (65, 65, 1))
    for kind in ("random", "smooth", "orthogonal", "one tap", "rank one", "tiny")
]


@pytest.mark.parametrize(
    ("kind", "out", "into", "kernel"), part(CIRCULANTS, *range(18), 18, 20, 22, 25, 27, 29)
)
def test_a_circulant_norm_is_that_of_its_symbols(
    kind: str, out: int, into: int, kernel: int
) -> None:
    """Peaks at one frequency, equal norms at all of them, zeros: wherever the largest lies."""
    rng = torch.Generator().manual_seed(kernel)
    mixed = torch.randn(out, into, 1, 1, generator=rng, dtype=torch.float64)
    line = torch.arange(kernel, dtype=torch.float64) - (kernel - 1) / 2
    tap = torch.zeros(kernel, kernel, dtype=torch.float64)
    tap[kernel // 2, 0] = 1.0
    column = torch.randn(out, 1, 1, 1, generator=rng, dtype=torch.float64)
    random = torch.randn(out, into, kernel, kernel, generator=rng, dtype=torch.float64)
    blocks = {
        "random": random,
        "smooth": mixed * torch.exp(-(line[:, None] ** 2 + line**2)),
        "orthogonal": torch.eye(out, into, dtype=torch.float64)[:, :, None, None] * tap,
        "one tap": mixed * tap,
        "rank one": column * random[:1],
        "tiny": random * 1e-8,
    }[kind]
    for grid in ((9, 10), (6, 7)):
        plain, twisted, *others = (
            shifted_circulant_norm(blocks, grid, s) for s in circulant.SHIFTS
        )
        found = circulant.circulant_norm(blocks, grid)
        # The last two shifts are tried only where the second gained something.
        assert found >= min(plain, twisted, *others) * (1 - 1e-12)
        assert found <= min(plain, twisted) * (1 + 1e-6)
        assert circulant.circulant_norm(blocks, grid, ceiling=0.5 * found) == 0.5 * found


@given(st.sampled_from([2, 4, 10]), st.integers(0, 9), st.sampled_from([0.0, 1e-6, 1e-4, 1e-2]))
@settings(max_examples=examples(20), deadline=None)
def test_a_bound_at_every_frequency_at_once_holds_at_any_frequency(
    channels: int, seed: int, noise: float
) -> None:
    """Of kernels that are orthogonal, nearly, and hardly; the frequencies are of no grid."""
    rng = torch.Generator().manual_seed(seed)
    kernel = orthogonal_kernel(channels, seed).double()
    kernel += noise * torch.randn(kernel.shape, generator=rng, dtype=torch.float64)
    least = float(kernel.square().sum((1, 2, 3)).max().sqrt())
    found = circulant.everywhere_norm(kernel, least)
    for shift in torch.rand(8, 2, generator=rng).tolist():
        assert shifted_circulant_norm(kernel, (2, 3), (shift[0], shift[1])) <= found
    if found < math.inf:
        assert found <= least * (1 + circulant.CLOSE) + 1e-12
    assert (found < math.inf) == (noise < 1e-4) or noise == 1e-4
    # What is wanted is known to be less: then it is of no use.
    assert circulant.everywhere_norm(kernel, 0.99) == math.inf


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_a_nearly_orthogonal_convolution_needs_no_frequencies(
    padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = ConvGeometry((5, 6), padding=(padding,) * 4)
    weight = orthogonal_kernel(6, 3)
    norm = true_norm(weight, geometry)
    monkeypatch.setattr(spectral, "EXACT_SIDE", 0)
    monkeypatch.setattr(circulant, "_proved", None)
    assert norm <= conv_norm(weight, geometry) <= norm * (1 + circulant.CLOSE)
    assert circulant.periodic_norm(weight.double(), (5, 6)) <= 1 + circulant.CLOSE


#: Every kind of kernel in every geometry; the slice has each of them, a third of the pairs.
LARGER_MAPS = [
    (kind, *geometry)
    for geometry in (
        (3, 1, 1, 16, 1),
        (3, 1, 0, 18, 1),
        (4, 2, 1, 16, 1),
        (5, 1, 2, 16, 1),
        (5, 2, 2, 17, 1),
        (3, 2, 1, 20, 1),
        (3, 1, 2, 20, 2),
        (1, 1, 0, 16, 1),
    )
    for kind in ("random", "ones", "smooth", "wave")
]


@pytest.mark.parametrize(
    ("kind", "kernel", "stride", "padding", "size", "dilation"),
    part(LARGER_MAPS, *range(0, len(LARGER_MAPS), 3)),
)
def test_convolution_bound_is_within_two_percent_on_larger_maps(
    kind: str,
    kernel: int,
    stride: int,
    padding: int,
    size: int,
    dilation: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(kernel * 100 + size)
    channels = torch.randn(4, 3, 1, 1, generator=generator)
    line = torch.arange(kernel) - (kernel - 1) / 2
    weight = {
        "random": torch.randn(4, 3, kernel, kernel, generator=generator),
        "ones": torch.ones(4, 3, kernel, kernel),
        "smooth": channels * torch.exp(-(line[:, None] ** 2 + line**2)),
        "wave": channels * torch.cos(1.3 * line[:, None] + 0.7 * line),
    }[kind]
    geometry = ConvGeometry((size, size), (stride,) * 2, (padding,) * 4, (dilation,) * 2)
    # The general bound, not the exact small case.
    monkeypatch.setattr(spectral, "EXACT_SIDE", 0)
    assert conv_norm(weight, geometry) <= 1.02 * true_norm(weight, geometry)


@pytest.mark.parametrize("exact_side", [0, spectral.EXACT_SIDE])
def test_the_norm_of_groups_is_the_largest_of_theirs_and_not_their_product(
    exact_side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectral, "EXACT_SIDE", exact_side)
    generator = torch.Generator().manual_seed(0)
    parts = [size * torch.randn(4, 3, 3, 3, generator=generator) for size in (1.0, 0.1, 0.4)]
    alone = [conv_norm(part, ConvGeometry((8, 8), padding=(1,) * 4)) for part in parts]
    assert math.prod(alone) > 1.5 * max(alone)
    together = ConvGeometry((8, 8), padding=(1,) * 4, groups=3)
    found = conv_norm(torch.cat(parts), together)
    assert true_norm(torch.cat(parts), together) <= found
    assert found == pytest.approx(max(alone), rel=1e-6)


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**31),
    st.sampled_from([1e-30, 1e-6, 1.0, 1e4, 1e30]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_dense_bound_is_the_largest_singular_value(
    rows: int, columns: int, seed: int, scale: float, low_rank: bool, large: bool
) -> None:
    """``large``: by the way of matrices of more than a thousand rows, proved by Cholesky first."""
    matrix = np.random.default_rng(seed).standard_normal((rows, columns)) * scale
    if low_rank:
        matrix = np.outer(matrix[:, 0], matrix[0] / scale)
    norm = np.linalg.norm(matrix, 2)
    limit = dense.CHOLESKY_FIRST
    try:
        dense.CHOLESKY_FIRST = 0 if large else limit
        bound = dense_norm(torch.from_numpy(matrix))
    finally:
        dense.CHOLESKY_FIRST = limit
    assert norm * (1 - 1e-13) <= bound <= norm * (1 + (1e-5 if large else 1e-7))


def test_power_iteration_underestimates_where_the_bound_does_not() -> None:
    """The near-isometric operators on which stopping rules fail."""
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.001], dtype=torch.float64))
    estimate = power_iteration_norm(lambda x: x @ matrix.T, (4,), steps=3)
    assert estimate < 1.001 <= dense_norm(matrix)


def test_collatz_wielandt_bounds_maps_with_unread_inputs() -> None:
    weight = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    geometry = ConvGeometry((5, 5), (3, 3))
    bound = absolute_norm(lambda x: geometry.apply(x, weight), (1, 5, 5))
    assert 2.0 <= bound <= 2.0 * (1 + 1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_gives_an_infinite_norm(value: float) -> None:
    weight = torch.ones(2, 2, 3, 3)
    weight[0, 0, 0, 0] = value
    assert conv_norm(weight, ConvGeometry((8, 8))) == math.inf
    assert dense_norm(weight.reshape(4, 9)) == math.inf


def test_zero_operators_have_norm_zero() -> None:
    assert conv_norm(torch.zeros(2, 2, 3, 3), ConvGeometry((8, 8))) == 0.0
    assert dense_norm(torch.zeros(3, 4)) == 0.0
