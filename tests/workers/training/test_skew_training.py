"""Skew orthogonal convolutions are trained, and what is deployed of them is certified as norm 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.layers.one_lipschitz import SkewConv2d
from models.network import Network
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from tests.workers.training.runs import CPU, images, radii_of_network_and_file
from workers.training.config import TrainingConfig
from workers.training.data import TrainingData, pixels
from workers.training.loop import train
from workers.verification.bounds.lipschitz import lipschitz_constant
from workers.verification.graph.affine_maps import Convolution
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.graph.skew.series import SkewSeries
from workers.verification.norms.spectral import materialize

ARCHITECTURE: dict[str, Any] = {
    "input": [1, 28, 28],
    "layers": [
        {"kind": "skew-conv2d", "out": 4},
        {"kind": "householder", "order": 2},
        {"kind": "orthogonal-conv2d", "out": 8, "kernel": 2},
        {"kind": "skew-conv2d", "out": 8, "degree": 8},
        {"kind": "pair-max"},
        {"kind": "orthogonal-conv2d", "out": 16, "kernel": 2},
        {"kind": "skew-conv2d", "out": 12},
        {"kind": "maxmin"},
        {"kind": "flatten"},
        {"kind": "normalized-linear", "out": 10},
    ],
}

#: 21 skew layers: chains of 8 channels at 12 x 12 and 32 at 6 x 6, and matrices across 64.
DEEP: dict[str, Any] = {
    "name": "lipconvnet",
    "input": [1, 12, 12],
    "blocks": 2,
    "depth": 20,
    "width": 8,
    "mean": [0.2],
    "activation": "maxmin",
}


@pytest.fixture(scope="module")
def trained() -> Network:
    config = TrainingConfig(
        method="emma",
        architecture=ARCHITECTURE,
        epsilon=0.3,
        epochs=8,
        batch_size=20,
        learning_rate=3e-3,
        activation="relu",
    )
    network, _ = train(config, images(100), device=CPU)
    return network


def test_it_learns_and_its_kernels_move(trained: Network) -> None:
    data = images(100)
    x = data.x.to(torch.float32) / 255
    with torch.no_grad():
        right = trained(x).argmax(1) == data.y
    assert float(right.float().mean()) > 0.5
    for node in trained.nodes:
        layer = trained.layer(node.name)
        if isinstance(layer, SkewConv2d):
            # Power steps have followed the norms: the kernel in training is the one deployed.
            weight = layer.weight.requires_grad_()
            assert torch.allclose(layer.kernel().detach(), layer.frozen(), atol=0.02)
            weight.requires_grad_(False)


def test_what_is_deployed_is_certified_as_norm_one(trained: Network) -> None:
    compiled = CompiledNetwork.compile(trained.deployed())
    series = [step.op for step in compiled.steps if isinstance(step.op, SkewSeries)]
    assert len(series) == 2
    assert 0.999 < lipschitz_constant(compiled) < 1.005
    generator = torch.Generator().manual_seed(0)
    for op in series:
        assert op.spectral() == 1.0
        x = torch.randn(1, *op.in_shape, generator=generator, dtype=torch.float64)
        for _ in range(40):
            y = op.linear(x / x.norm())
            x = op.adjoint(y)
        assert float(y.norm()) <= 1.0 + 1e-12


def test_the_file_gets_the_same_radii(trained: Network) -> None:
    radii_of_network_and_file(trained, pixels(images(10).x).numpy())


def test_no_layer_of_a_trained_file_is_longer_than_its_bound() -> None:
    """Twenty layers and more: matrices by their singular values, chains by power steps, which never
    find more than the norm."""
    config = TrainingConfig(
        method="soc",
        architecture=DEEP,
        epsilon=0.3,
        epochs=1,
        batch_size=20,
        optimizer="sgd-normalized",
        learning_rate=0.1,
    )
    data = images(60)
    data = TrainingData(data.x[:, :, 2:26:2, 2:26:2].contiguous(), data.y)
    network, _ = train(config, data, device=CPU)
    kinds = [network.layer(node.name).kind for node in network.nodes]
    assert kinds.count("skew-conv2d") == 21
    compiled = CompiledNetwork.compile(import_onnx_bytes(export_onnx(network.deployed())))
    maps = [step for step in compiled.steps if isinstance(step.op, Convolution | SkewSeries)]
    assert sum(isinstance(step.op, SkewSeries) for step in maps) == 11
    assert len(maps) >= 21
    generator = torch.Generator().manual_seed(0)
    for step in maps:
        if isinstance(step.op, Convolution):
            norm = torch.linalg.matrix_norm(materialize(step.op.linear, step.op.in_shape), 2)
        else:
            x = torch.randn(1, *step.op.in_shape, generator=generator, dtype=torch.float64)
            for _ in range(25):
                y = step.op.linear(x / x.norm())
                x = step.op.adjoint(y)
            norm = y.norm()
        assert 0.1 < float(norm) <= step.norms.spectral * (1 + 1e-12)
