"""Layers whose weight is a function of what is trained: norms as promised, deployed as computed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.architectures.initial_values import NO_LIMIT
from models.architectures.published import build
from models.errors import ModelError
from models.layers.kinds import Conv2d, Linear
from models.layers.reparametrized import (
    REPARAMETRIZED,
    OrthogonalLinear,
    ResidualOrthogonalLinear,
    orthogonalized,
)
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes

FAMILY = {"name": "liresnet", "depth": 2, "width": 8, "dense_width": 24, "dense_depth": 1}
FLAT = {"name": "orthogonal-dense", "input": [1, 8, 8], "widths": [32, 16], "classes": 5}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99), st.sampled_from([1e-4, 1, 1e4]))
def test_rows_or_columns_are_orthonormal_at_every_scale(
    out: int, into: int, seed: int, scale: float
) -> None:
    weight = torch.randn(out, into, generator=generator(seed), dtype=torch.float64) * scale
    found = orthogonalized(weight)
    assert found.shape == weight.shape
    norms = torch.linalg.svdvals(found)
    # The ridge takes a little from directions in which the weight is nearly singular.
    assert float(norms.max()) <= 1.0 + 1e-9
    if min(out, into) * 3 < max(out, into):
        assert float(norms.min()) > 0.999


@pytest.mark.parametrize("description", [FAMILY, FLAT, {**FLAT, "head": "lln"}])
def test_what_is_deployed_computes_the_same_and_has_plain_layers(
    description: dict[str, object],
) -> None:
    network = build(description, activation="maxmin", generator=generator())
    deployed = network.deployed()
    x = torch.rand(6, *network.input_shape, generator=generator(1))
    with torch.no_grad():
        assert torch.allclose(network(x), deployed(x), atol=1e-6)
        again = import_onnx_bytes(export_onnx(deployed))
        assert torch.allclose(again(x), deployed(x), atol=1e-6)
    kinds = {type(deployed.layer(node.name)) for node in deployed.nodes}
    assert not kinds & set(REPARAMETRIZED)
    assert kinds & {Conv2d, Linear}


def test_gradients_reach_what_is_trained() -> None:
    layer = OrthogonalLinear(torch.randn(4, 9, generator=generator()), torch.zeros(4))
    layer(torch.rand(3, 9, generator=generator(1))).square().sum().backward()
    assert layer.weight.grad is not None
    assert float(layer.weight.grad.abs().max()) > 0


def test_residual_dense_layers_are_orthogonal_and_begin_near_the_identity() -> None:
    network = build({**FAMILY, "dense_depth": 4}, activation="maxmin", generator=generator())
    layers = [network.layer(node.name) for node in network.nodes]
    residual = [layer for layer in layers if isinstance(layer, ResidualOrthogonalLinear)]
    assert [layer.scale for layer in residual] == [0.5] * 4
    for layer in residual:
        weight = layer.tensors()[0].detach()
        eye = torch.eye(24)
        assert torch.allclose(weight @ weight.T, eye, atol=1e-5)
        assert float((weight - eye).square().mean().sqrt()) < 0.1
    residual[0].requires_grad_(True)
    residual[0](torch.rand(3, 24, generator=generator(1)))[:, 0].sum().backward()
    assert residual[0].gain.grad is not None
    assert float(residual[0].gain.grad.abs().max()) > 0


def test_glorot_weights_are_bounded_by_both_fans() -> None:
    network = build("mnist-4c3f", generator=generator(), initial={"init": "glorot"})
    for node in network.nodes:
        layer = network.layer(node.name)
        if isinstance(layer, Conv2d | Linear):
            fans = (layer.weight[0].numel() + layer.weight.numel() // layer.weight.shape[1]) / 6
            reach = float(layer.weight.detach().abs().max()) * fans**0.5
            assert 0.9 <= reach <= 1.0
            assert layer.bias is not None
            assert not layer.bias.any()


def test_clamped_maxmin_leaves_the_other_half_alone() -> None:
    network = build("cifar-6c2f", activation="clamped-maxmin", generator=generator())
    most = network.layer("at-most_2").value
    least = network.layer("at-least_3").value
    half = most.shape[0] // 2
    assert bool((most[:half] == torch.tensor(0.1)).all())
    assert bool((most[half:] == NO_LIMIT).all())
    assert bool((least[half:] == torch.tensor(-0.1)).all())
    assert bool((least[:half] == -NO_LIMIT).all())


@pytest.mark.parametrize(
    ("description", "code"),
    [
        ({"name": "resnext"}, "unknown_architecture"),
        ({"name": "liresnet", "depth": 0}, "invalid_architecture"),
        ({"name": "liresnet", "deep": 3}, "invalid_architecture"),
        ({"name": "orthogonal-dense", "widths": []}, "invalid_architecture"),
        ({"name": "orthogonal-dense", "widths": ["512"]}, "invalid_architecture"),
        ({"name": "orthogonal-dense", "head": "crc"}, "invalid_architecture"),
        ({"name": "orthogonal-dense", "widths": [1 << 16, 1 << 16]}, "model_too_large"),
        ({"name": "liresnet", "input": [3, 33]}, "invalid_architecture"),
    ],
)
def test_families_refuse_what_they_cannot_be(description: dict[str, object], code: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(description, activation="maxmin")
    assert caught.value.code == code
