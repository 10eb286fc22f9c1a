"""LipConvnets: the published sizes, and one certificate for the network and for its file."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from models.architectures.lipconvnet import HEADS, POOLS
from models.architectures.published import blueprint, build
from models.errors import ModelError
from models.onnx.deployed import DeployedNetwork
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from tests.extent import part
from workers.verification.bounds.lipschitz import lipschitz_constant
from workers.verification.cascade.run import certify_samples
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.results import CertificationRequest

#: Of ten classes behind unit rows, in millions.
PUBLISHED = {5: 16.75, 10: 21.73, 15: 26.71, 20: 31.69, 25: 36.67, 30: 41.65, 35: 46.63, 40: 51.61}
TINY: dict[str, Any] = {
    "name": "lipconvnet",
    "input": [3, 8, 8],
    "depth": 4,
    "blocks": 2,
    "width": 4,
    "classes": 4,
    "mean": [0.5, 0.4, 0.3],
    "activation": "maxmin",
}


@pytest.mark.parametrize("depth", part(list(PUBLISHED), 0, 2))
def test_sizes_are_the_published_ones(depth: int) -> None:
    skeleton = blueprint({"name": "lipconvnet", "depth": depth, "activation": "maxmin"}).skeleton
    stored = sum(parameter.numel() for parameter in skeleton.parameters())
    assert stored / 1e6 == pytest.approx(PUBLISHED[depth], abs=0.01)
    kinds = [skeleton.layer(node.name).kind for node in skeleton.nodes]
    assert kinds.count("skew-conv2d") == depth + 1
    assert kinds.count("space-to-depth") == 5


def test_a_curvature_head_reads_all_features() -> None:
    skeleton = blueprint({"name": "lipconvnet", "head": "crc", "classes": 100}).skeleton
    first, _, last = (node.shape for node in skeleton.nodes[-3:])
    assert (skeleton.nodes[-4].shape, first, last) == ((2048,), (4096,), (100,))


@pytest.mark.parametrize(
    ("head", "pooling", "activation"),
    [
        *((head, "max", "maxmin") for head in HEADS),
        *(("lln", pooling, "householder-2") for pooling in POOLS),
    ],
)
def test_the_file_gets_the_radii_of_the_network(head: str, pooling: str, activation: str) -> None:
    sizes = {"hidden": 12} if head == "crc" else {}
    wish = {**TINY, "head": head, "pooling": pooling, "activation": activation, **sizes}
    deployed = build(wish, generator=torch.Generator().manual_seed(1)).deployed()
    compiled = CompiledNetwork.compile(deployed)
    if head != "crc":
        # Every layer keeps its promise: nothing is left but the pixels' standard deviation.
        assert lipschitz_constant(compiled) * 0.2507 <= 1.001
    data = export_onnx(deployed)
    x = np.random.default_rng(0).random((6, 3, 8, 8), dtype=np.float32)
    runtime = DeployedNetwork(data, deployed.input_shape, None)
    logits = runtime(x)
    method = "crc" if head == "crc" else "lipschitz"
    request = CertificationRequest("l2", (Fraction(1, 1000),), method, attack=None)
    radii = [
        certify_samples(
            network,
            x,
            logits.argmax(1),
            np.arange(len(x)),
            request,
            deployed=runtime,
            deployed_logits=logits,
            device=torch.device("cpu"),
        ).radius
        for network in (deployed, import_onnx_bytes(data))
    ]
    assert (radii[0] > 0).any()
    np.testing.assert_allclose(radii[1], radii[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": 5}, "multiple of its 2 blocks"),
        ({"blocks": 9}, "blocks"),
        ({"width": 1}, "width"),
        ({"pooling": "mean"}, "max"),
        ({"head": ["lln"]}, "crc, lln, orthogonal"),
        ({"hidden": 8}, "unknown keys"),
        ({"degree": 7}, "degree"),
        ({"input": [3, 6, 6]}, "does not fit"),
        ({"mean": 0.5}, "mean"),
        ({"std": 0.0}, "std"),
    ],
)
def test_a_lipconvnet_refuses_what_it_cannot_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as caught:
        blueprint({**TINY, **change})
    assert caught.value.code == "invalid_architecture"
    assert words in str(caught.value)
