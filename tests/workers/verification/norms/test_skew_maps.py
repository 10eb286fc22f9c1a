"""Norms of skew convolutions: never below the true one, near that of the torus, at any scale."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.extent import examples
from workers.verification.clock import Clock, OutOfTime
from workers.verification.norms import skew_maps
from workers.verification.norms.circulant import periodic_norm
from workers.verification.norms.skew_maps import skew_norm
from workers.verification.norms.spectral import ConvGeometry, materialize


def skew(channels: int, height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(
        channels, channels, height, width, generator=generator, dtype=torch.float64
    )
    return (weight - weight.transpose(0, 1).flip(2, 3)) / 2


def true_norm(weight: Tensor, size: tuple[int, int]) -> float:
    half = (weight.shape[2] // 2, weight.shape[3] // 2)
    geometry = ConvGeometry(size, padding=half + half)
    matrix = materialize(lambda x: geometry.apply(x, weight), (weight.shape[0], *size))
    return float(torch.linalg.matrix_norm(matrix, 2))


@given(
    st.integers(1, 5),
    st.sampled_from([(1, 1), (3, 3), (5, 1), (3, 7)]),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.integers(0, 2**31),
    st.sampled_from([1e-300, 1e-20, 1.0, 1e20]),
    st.booleans(),
)
@settings(max_examples=examples(60), deadline=None)
def test_a_skew_norm_is_never_below_the_true_one_and_near_that_of_the_torus(
    channels: int,
    kernel: tuple[int, int],
    size: tuple[int, int],
    seed: int,
    scale: float,
    sparse: bool,
) -> None:
    weight = skew(channels, *kernel, seed)
    if sparse:
        weight = torch.where(weight.abs() > 1.0, weight, 0.0)
    found = skew_norm(weight * scale, size) / scale
    assert found >= true_norm(weight, size) * (1 - 1e-12)
    grid = (size[0] + kernel[0] // 2, size[1] + kernel[1] // 2)
    if bool(weight.any()):
        assert found <= periodic_norm(weight, grid) * 1.03 + 1e-7


def test_nothing_rests_on_the_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without power steps what is tried begins far too low, and is raised until it is proved."""
    monkeypatch.setattr(skew_maps, "GUESS_STEPS", 0)
    for seed in range(examples(3)):
        weight = skew(4, 3, 3, seed)
        true = true_norm(weight, (5, 4))
        assert true <= skew_norm(weight, (5, 4)) <= 64 * true


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_kernel_that_is_not_finite_has_no_norm(value: float) -> None:
    weight = skew(2, 3, 3, 0)
    weight[0, 0, 0, 0], weight[0, 0, 2, 2] = value, -value
    assert not skew_norm(weight, (3, 3)) < math.inf
    assert skew_norm(torch.zeros(2, 2, 3, 3, dtype=torch.float64), (3, 3)) == 0.0


def test_it_ends_when_the_time_is_up() -> None:
    with pytest.raises(OutOfTime):
        skew_norm(skew(4, 3, 3, 0), (8, 8), Clock(0.0, now=lambda: 1.0))
