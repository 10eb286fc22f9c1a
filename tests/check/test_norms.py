"""Norms of the checker are never below the true ones, and near them, at every scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from check.network import KINDS, Affine, Shape
from check.norms import largest_norm
from tests.extent import examples


@pytest.mark.parametrize("exponent", [-140, -20, 0, 60, 127])
def test_a_matrix_norm_is_an_upper_bound_and_near(exponent: int) -> None:
    random = np.random.default_rng(0)
    for shape in ((1, 1), (1, 9), (30, 7), (64, 200)):
        matrix = np.ldexp(random.standard_normal(shape), exponent)
        exact = float(np.linalg.norm(matrix, 2))
        assert exact * (1.0 - 1e-12) <= largest_norm(matrix[None]) <= exact * (1.0 + 1e-4)
    orthogonal = np.ldexp(np.linalg.qr(random.standard_normal((40, 40)))[0], exponent)
    assert 1.0 - 1e-12 <= largest_norm(orthogonal[None]) / 2.0**exponent <= 1.0 + 1e-4
    assert largest_norm(np.zeros((2, 3, 4))) == 0.0
    assert largest_norm(np.full((1, 2, 2), np.inf)) == math.inf


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Affine, Shape]:
    """Any kernel and geometry on a small image, weights of one size from 1e-42 to 1e36."""

    def sizes(count: int, least: int, most: int) -> list[int]:
        return draw(st.lists(st.integers(least, most), min_size=count, max_size=count))

    groups, inner, out = sizes(3, 1, 2)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight = random.standard_normal((groups * out, inner, *sizes(2, 1, 3)))
    weight = np.ldexp(
        np.abs(weight) if draw(st.booleans()) else weight, draw(st.integers(-140, 120))
    )
    row = {
        "weight": "w",
        "bias": None,
        "stride": sizes(2, 1, 3),
        "padding": sizes(4, 0, 2),
        "dilation": sizes(2, 1, 2),
        "groups": groups,
    }
    shape = (groups * inner, *sizes(2, 5, 7))
    layer = KINDS["conv2d"][1](row, shape, {"w": weight.astype(np.float32)})
    assert isinstance(layer, Affine)
    return layer, shape


def written_out(layer: Affine, shape: Shape, entries: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix [in, out] with these weights."""
    size = math.prod(shape)
    return layer.linear(np.eye(size).reshape(size, *shape), entries).reshape(size, -1)


@settings(max_examples=examples(40))
@given(convolutions())
def test_a_convolution_s_norms_are_upper_bounds(drawn: tuple[Affine, Shape]) -> None:
    layer, shape = drawn
    exact, absolute = (
        float(np.linalg.norm(written_out(layer, shape, entries), 2))
        for entries in (layer.weight, layer.size)
    )
    norm, absolute_norm = layer.norms()
    assert exact * (1.0 - 1e-12) <= norm <= absolute_norm
    assert absolute * (1.0 - 1e-12) <= absolute_norm
    rows = written_out(layer, shape, layer.size).sum(0)
    assert float(rows.max()) * (1.0 - 1e-12) <= layer.row_sum


def test_a_torus_loses_little_on_a_map_larger_than_its_kernel() -> None:
    random = np.random.default_rng(1)
    row = {"weight": "w", "bias": None, "dilation": [1, 1], "groups": 1}
    row |= {"stride": [2, 2], "padding": [1, 1, 1, 1]}
    weight = random.standard_normal((6, 4, 4, 4)).astype(np.float32)
    layer = KINDS["conv2d"][1](row, (4, 12, 12), {"w": weight})
    assert isinstance(layer, Affine)
    exact = float(np.linalg.norm(written_out(layer, (4, 12, 12), layer.weight), 2))
    assert exact <= layer.norms()[0] <= 1.05 * exact
