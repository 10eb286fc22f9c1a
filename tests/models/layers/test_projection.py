"""Projection pooling is a distance to a cone: what it is, its norm, and what is deployed of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import ModelError
from models.layers.base import ShapeError
from models.layers.one_lipschitz import ONE_LIPSCHITZ, Householder, ProjectionPool
from models.layers.shapes import Reshape
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.extent import examples
from workers.verification.bounds.lipschitz import lipschitz_constant
from workers.verification.graph.compiled_network import CompiledNetwork

F64 = torch.float64


def double(theta: Tensor, folds: int) -> ProjectionPool:
    return ProjectionPool(theta.to(F64), folds=folds)


def signed_distance(x: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    """To the cone {|angle| <= theta / 2}, by its three cases; negative inside."""
    half = theta / 2
    beside = -x * torch.sin(half) + y.abs() * torch.cos(half)
    along = x * torch.cos(half) + y.abs() * torch.sin(half)
    return torch.where(along >= 0, beside, torch.hypot(x, y))


angles = st.floats(0.0, math.pi)


@given(theta=angles, folds=st.integers(1, 6), seed=st.integers(0, 10**6))
@settings(max_examples=examples(40), deadline=None)
def test_it_is_the_distance_to_the_cone_but_for_the_corners_of_a_polygon_at_the_apex(
    theta: float, folds: int, seed: int
) -> None:
    points = torch.randn(200, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)
    x, y = points.unbind(1)
    with torch.no_grad():
        found = double(torch.tensor([theta], dtype=F64), folds)(points)[:, 0]
    distance = signed_distance(x, y, torch.tensor(theta, dtype=F64))
    along = x * math.cos(theta / 2) + y.abs() * math.sin(theta / 2)
    assert bool((found <= distance + 1e-12).all())
    assert torch.allclose(found[along >= 0], distance[along >= 0], atol=1e-12)
    least = math.cos((math.pi - theta) / (2**folds - 1) / 2)
    assert bool((found >= least * distance - 1e-12)[along < 0].all())


@given(theta=angles, folds=st.integers(1, 6), seed=st.integers(0, 10**6))
@settings(max_examples=examples(20), deadline=None)
def test_it_lengthens_nothing_and_its_gradient_has_norm_one(
    theta: float, folds: int, seed: int
) -> None:
    layer = double(torch.tensor([theta], dtype=F64), folds)
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(200, 2, generator=generator, dtype=F64) for _ in range(2))
    first.requires_grad_()
    out = layer(first)
    with torch.no_grad():
        moved = (out - layer(second)).abs()[:, 0]
        assert bool((moved <= (first - second).norm(dim=1) * (1 + 1e-12)).all())
    (gradient,) = torch.autograd.grad(out.sum(), first)
    assert torch.allclose(gradient.norm(dim=1), torch.ones(200, dtype=F64), atol=1e-12)


def test_the_angle_has_the_gradient_of_the_distance() -> None:
    theta = torch.tensor([0.3, 1.1, 2.9], dtype=F64)
    x = torch.randn(5, 6, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)

    def pooled(angles: Tensor) -> Tensor:
        layer = ProjectionPool(angles)
        del layer.theta
        layer.theta = angles  # type: ignore[assignment]
        return layer(x)

    assert torch.autograd.gradcheck(pooled, theta.requires_grad_())


@pytest.mark.parametrize("shape", [(6,), (6, 3, 2)])
@pytest.mark.parametrize(
    "layer",
    [
        ProjectionPool(torch.tensor([0.0, 1.0, math.pi])),
        ProjectionPool(torch.tensor([0.5, 1.0, 2.0]), folds=1),
        Householder(torch.tensor([[0.5, 1.0, 2.0], [3.0, 0.1, 1.2]])),
    ],
    ids=["projection", "two normals", "householder"],
)
def test_what_is_deployed_computes_the_same_and_is_certified_as_norm_one(
    layer: Any, shape: tuple[int, ...]
) -> None:
    out = layer.output_shape(shape)
    rows: list[Any] = [("p", layer, ("input",)), ("f", Reshape(shape=(math.prod(out),)), ("p",))]
    network = Network(shape, rows).eval()
    deployed = network.deployed()
    assert not {type(deployed.layer(node.name)) for node in deployed.nodes} & set(ONE_LIPSCHITZ)
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1))
    data = export_onnx(deployed)
    with torch.no_grad():
        expected = network(x)
        assert torch.allclose(deployed(x), expected, atol=2e-6)
        assert torch.equal(import_onnx_bytes(data)(x), deployed(x))
    found = OnnxRuntimeModel(data, shape)(x.numpy())
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-6)
    assert 1.0 <= lipschitz_constant(CompiledNetwork.compile(deployed)) <= 1.0 + 2e-6


def test_angles_are_kept_between_nothing_and_a_half_plane() -> None:
    layer = ProjectionPool(torch.tensor([-0.5, 1.0, 4.0]))
    layer.project()
    assert torch.allclose(layer.theta.detach(), torch.tensor([0.0, 1.0, math.pi]))


def test_a_projection_pool_refuses_what_it_cannot_be() -> None:
    with pytest.raises(ModelError, match="folds"):
        ProjectionPool(torch.zeros(3), folds=7)
    with pytest.raises(ModelError, match="angles"):
        ProjectionPool(torch.zeros(3, 1))
    for shape in [(5,), (6, 2), (8, 2, 2)]:
        with pytest.raises(ShapeError):
            ProjectionPool(torch.zeros(3)).output_shape(shape)
