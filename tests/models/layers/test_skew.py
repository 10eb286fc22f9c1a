"""Skew orthogonal convolutions and folds of pairs: what they are, and what is deployed of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.architectures.published import build
from models.errors import ModelError
from models.layers.base import ShapeError
from models.layers.one_lipschitz import (
    ONE_LIPSCHITZ,
    Householder,
    PairMax,
    SkewConv2d,
    skew_kernels,
)
from models.layers.one_lipschitz.skew_kernels import (
    dense_matrix,
    exact_scale,
    flattenings,
    over_norm,
    power_step,
    skew,
    taylor,
    trained_series,
)
from models.layers.shapes import Reshape
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(
    channels: int, out: int, kernel: int = 3, *, degree: int = 12, seed: int = 0
) -> SkewConv2d:
    largest = max(channels, out)
    weight = normal(largest, largest, kernel, kernel, seed=seed)
    vectors = []
    for index, matrix in enumerate(flattenings(skew(weight))):
        vector = normal(len(matrix), seed=seed + index + 1)
        for _ in range(200):
            vector = F.normalize(matrix @ (matrix.T @ vector), dim=0)
        vectors.append(vector)
    bias = 0.1 * normal(out, seed=seed + 3)
    return SkewConv2d(weight, *vectors, bias, channels=channels, out=out, degree=degree)


@given(seed=st.integers(0, 10**6), kernel=st.sampled_from([1, 3, 5]), channels=st.integers(1, 5))
@settings(max_examples=examples(30), deadline=None)
def test_the_map_of_a_skew_kernel_is_skew_under_zero_padding(
    seed: int, kernel: int, channels: int
) -> None:
    a = skew(normal(channels, channels, kernel, kernel, seed=seed).to(F64))
    u, v = (normal(1, channels, 6, 5, seed=seed + i).to(F64) for i in (1, 2))
    ju, jv = (F.conv2d(x, a, padding=kernel // 2) for x in (u, v))
    assert abs(float((ju * v).sum() + (u * jv).sum())) <= 1e-12 * float(u.norm() * v.norm())
    # Exactly skew in float32 too, and behind a common factor.
    single = skew(normal(channels, channels, kernel, kernel, seed=seed))
    for kept in (single, single * 0.3711):
        assert torch.equal(kept, -kept.transpose(0, 1).flip(2, 3))


@given(seed=st.integers(0, 10**6), channels=st.integers(2, 6), size=st.integers(1, 7))
@settings(max_examples=examples(20), deadline=None)
def test_flattenings_bound_the_norm(seed: int, channels: int, size: int) -> None:
    a = skew(normal(channels, channels, 3, 3, seed=seed).to(F64))
    units = torch.eye(channels * size * size, dtype=F64).reshape(-1, channels, size, size)
    matrix = F.conv2d(units, a, padding=1).flatten(1)
    assert float(torch.linalg.matrix_norm(matrix, 2)) <= 3.0 / exact_scale(a) * (1 + 1e-12)


@given(seed=st.integers(0, 10**6), degree=st.sampled_from([1, 5, 8]))
@settings(max_examples=examples(20), deadline=None)
def test_the_fast_backward_pass(seed: int, degree: int) -> None:
    """Value and input gradient are autograd's; the weight gradient points the same way."""
    a = skew(normal(12, 12, 3, 3, seed=seed).to(F64))
    a = (a * exact_scale(a)).requires_grad_()
    x = normal(3, 12, 7, 6, seed=seed + 1).to(F64).requires_grad_()
    g = normal(3, 12, 7, 6, seed=seed + 2).to(F64)
    expected, found = taylor(x, a, degree), trained_series(x, a, degree)
    assert torch.allclose(found, expected, atol=1e-12)
    plain = torch.autograd.grad(expected, (x, a), g)
    fast = torch.autograd.grad(found, (x, a), g)
    assert torch.allclose(plain[0], fast[0], atol=1e-11)
    one, two = (skew(grad) for grad in (plain[1], fast[1]))
    assert float(F.cosine_similarity(one.flatten(), two.flatten(), dim=0)) > 0.99
    if degree <= 1:
        assert torch.allclose(one, two, atol=1e-11)


@pytest.mark.parametrize(("channels", "out"), [(3, 8), (8, 3), (6, 6)])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize("degree", [8, 12])
def test_what_is_deployed_computes_the_same_and_is_plain(
    channels: int, out: int, kernel: int, size: int, degree: int
) -> None:
    made = layer(channels, out, kernel, degree=degree).eval()
    flat = Reshape(shape=(out * size * size,))
    rows: list[Any] = [("s", made, ("input",)), ("f", flat, ("s",))]
    network = Network((channels, size, size), rows).eval()
    deployed = network.deployed()
    assert not {type(deployed.layer(node.name)) for node in deployed.nodes} & set(ONE_LIPSCHITZ)
    x = normal(4, channels, size, size, seed=9)
    with torch.no_grad():
        # A truncated series where the layer has one, the exponential where a matrix is deployed.
        room = 1e-5 if degree == 12 else 3e-3
        assert torch.allclose(network(x), deployed(x), atol=room)
        data = export_onnx(deployed)
        again = import_onnx_bytes(data)
        assert torch.allclose(again(x), deployed(x), atol=1e-6)
        logits = OnnxRuntimeModel(data, network.input_shape)(x.numpy())
    assert np.allclose(logits, deployed(x).detach().numpy(), atol=1e-5)
    # The kernel is stored once, however often it is applied.
    assert again.parameter_count == deployed.parameter_count
    assert deployed.parameter_count <= 1024**2 + 2 * 64 * 9 + 64 + 100


def test_the_exponential_is_orthogonal_and_the_series_never_lengthens() -> None:
    made = layer(4, 4).eval()
    matrix = dense_matrix(made.frozen(), (4, 4))
    eye = torch.eye(len(matrix), dtype=F64)
    assert torch.allclose(matrix.T @ matrix, eye, atol=1e-12)
    units = eye.reshape(-1, 4, 4, 4)
    for degree in (8, 12):
        series = taylor(units, made.frozen().to(F64), degree).flatten(1)
        assert float(torch.linalg.matrix_norm(series, 2)) <= 1.0 + 1e-14
        assert torch.allclose(series.T, matrix, atol=0.05 if degree == 8 else 2e-3)


@given(seed=st.integers(0, 10**6), kernel=st.sampled_from([1, 3, 5]), channels=st.integers(2, 5))
@settings(max_examples=examples(20), deadline=None)
def test_the_gradient_of_a_kernel_over_its_norm_is_autograds(
    seed: int, kernel: int, channels: int
) -> None:
    weight = normal(channels, channels, kernel, kernel, seed=seed).to(F64).requires_grad_()
    pull = normal(*weight.shape, seed=seed + 1).to(F64)
    starts = [normal(len(m), seed=seed + 2).to(F64) for m in flattenings(skew(weight.detach()))]
    made = skew(weight)
    norms = []
    for matrix, start in zip(flattenings(made), starts, strict=True):
        right = F.normalize(matrix.detach().T @ start, dim=0)
        left = F.normalize(matrix.detach() @ right, dim=0)
        norms.append(torch.dot(left, matrix @ right))
    expected = made / torch.minimum(*norms)
    (gradient,) = torch.autograd.grad((expected * pull).sum(), weight)
    with torch.no_grad():
        frozen = skew(weight)
        steps = [power_step(m, v) for m, v in zip(flattenings(frozen), starts, strict=True)]
    found = over_norm(weight, frozen, *steps)
    (own,) = torch.autograd.grad((found * pull).sum(), weight)
    assert torch.allclose(found, expected)
    # Where both norms are equal (a kernel of one place), either may be followed.
    assert torch.allclose(own, gradient, atol=1e-10)


@pytest.mark.parametrize("size", [(2, 2), (1, 5), (3, 2)])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_both_ways_to_the_exponential_are_that_of_the_map(
    size: tuple[int, int], kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map as its images of units, windows wider than the image included."""
    weight = layer(3, 3, kernel).eval().frozen().to(F64)
    units = torch.eye(3 * size[0] * size[1], dtype=F64).reshape(-1, 3, *size)
    images = F.conv2d(units, weight, padding=kernel // 2).flatten(1).T
    exact = torch.linalg.matrix_exp(images)
    assert torch.allclose(dense_matrix(weight, size), exact, atol=1e-12)
    monkeypatch.setattr(skew_kernels, "LARGE", 0)
    assert torch.allclose(dense_matrix(weight, size), exact, atol=1e-6)


def test_training_follows_the_norms_and_trains_the_kernel() -> None:
    made = layer(3, 5).train()
    x = normal(6, 3, 8, 8, seed=4)
    made(x).square().sum().backward()
    for parameter in (made.weight, made.bias):
        assert parameter is not None
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())
        assert float(parameter.grad.abs().max()) > 0
    exact = skew(made.weight.detach()) * exact_scale(
        made.weight.detach() * 0 + skew(made.weight.detach())
    )
    assert torch.allclose(made.kernel().detach(), exact, atol=1e-4)
    stored = SkewConv2d.build(made.config(), made.state_dict())
    assert torch.equal(stored.eval()(x), made.eval()(x))


@pytest.mark.parametrize(
    ("description", "code"),
    [
        ({"kind": "skew-conv2d", "out": 4, "kernel": 2}, "invalid_architecture"),
        ({"kind": "skew-conv2d", "out": 4, "degree": 5}, "invalid_architecture"),
        ({"kind": "skew-conv2d"}, "invalid_architecture"),
        ({"kind": "householder", "order": 3}, "invalid_architecture"),
        ({"kind": "householder"}, "invalid_architecture"),
    ],
)
def test_refused_in_words(description: dict[str, object], code: str) -> None:
    with pytest.raises(ModelError) as caught:
        build({"input": [3, 8, 8], "layers": [description]}, generator=torch.Generator())
    assert caught.value.code == code, caught.value


def test_shapes_that_do_not_fit() -> None:
    made = layer(3, 5)
    with pytest.raises(ShapeError):
        made.output_shape((4, 8, 8))
    with pytest.raises(ShapeError):
        PairMax().output_shape((3, 8, 8))
    with pytest.raises(ShapeError):
        Householder(normal(1, 3)).output_shape((8,))


@given(
    seed=st.integers(0, 10**6),
    order=st.sampled_from([1, 2]),
    shape=st.sampled_from([(6,), (4, 3, 2)]),
)
@settings(max_examples=examples(30), deadline=None)
def test_folds_never_lengthen_keep_gradients_and_are_deployed_as_they_are(
    seed: int, order: int, shape: tuple[int, ...]
) -> None:
    theta = normal(order, shape[0] // 2, seed=seed) * 3
    fold = Householder(theta).double()
    x, y = (normal(64, *shape, seed=seed + i).to(F64) for i in (1, 2))
    y = torch.where(torch.arange(64).reshape(-1, *([1] * len(shape))) % 2 == 0, x + 1e-3 * y, y)
    moved = (fold(x) - fold(y)).flatten(1).norm(dim=1)
    assert bool((moved <= (x - y).flatten(1).norm(dim=1) * (1 + 1e-12)).all())
    x.requires_grad_()
    direction = normal(64, *shape, seed=seed + 3).to(F64)
    (gradient,) = torch.autograd.grad((fold(x) * direction).sum(), x)
    assert torch.allclose(gradient.flatten(1).norm(dim=1), direction.flatten(1).norm(dim=1))
    flat = Reshape(shape=(math.prod(shape),))
    rows: list[Any] = [("h", Householder(theta), ("input",)), ("f", flat, ("h",))]
    network = Network(shape, rows)
    deployed = network.deployed()
    with torch.no_grad():
        plain = x.detach().float()
        assert torch.allclose(network(plain), deployed(plain), atol=2e-6)
        again = import_onnx_bytes(export_onnx(deployed))
        assert torch.allclose(again(plain), deployed(plain), atol=1e-6)
    assert sum(deployed.layer(n.name).kind == "maxmin" for n in deployed.nodes) == order


def test_a_right_angle_is_the_least_and_the_greatest() -> None:
    x = normal(5, 6)
    fold = Householder(torch.full((1, 3), math.pi / 2))
    first, second = x.chunk(2, dim=1)
    expected = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], 1)
    assert torch.allclose(fold(x), expected, atol=1e-6)
