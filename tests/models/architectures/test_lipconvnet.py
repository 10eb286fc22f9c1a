"""LipConvnets: the published sizes, and one certificate for the network and for its file."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.architectures.lipconvnet import HEADS, LAYERS, POOLS, STD
from models.architectures.published import blueprint, build
from models.errors import ModelError
from models.layers.affine import Linear
from models.network import Network
from tests.extent import part
from tests.workers.training.runs import (
    LIPCONVNET_CHOICES,
    radii_of_network_and_file,
    rounding_is_covered,
)
from workers.verification.bounds.lipschitz import lipschitz_constant
from workers.verification.graph.compiled_network import CompiledNetwork

#: Of ten classes behind unit rows, in millions.
PUBLISHED = {5: 16.75, 10: 21.73, 15: 26.71, 20: 31.69, 25: 36.67, 30: 41.65, 35: 46.63, 40: 51.61}
#: Activations of the papers.
FOLDS = ("maxmin", "householder", "householder-2")
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


@pytest.mark.parametrize("depth", PUBLISHED)
def test_sizes_are_the_published_ones(depth: int) -> None:
    skeleton = blueprint({"name": "lipconvnet", "depth": depth, "activation": "maxmin"}).skeleton
    stored = sum(parameter.numel() for parameter in skeleton.parameters())
    assert stored / 1e6 == pytest.approx(PUBLISHED[depth], abs=0.01)
    kinds = [skeleton.layer(node.name).kind for node in skeleton.nodes]
    assert kinds.count("skew-conv2d") == depth + 1
    assert kinds.count("space-to-depth") == 5


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_takes_the_places_of_the_convolutions(layer: str) -> None:
    """At the published size: as many layers, the same channels and images."""
    wish = {"name": "lipconvnet", "depth": 10, "activation": "maxmin"}
    skew, other = (blueprint({**wish, **more}).skeleton for more in ({}, {"layer": layer}))
    kinds = [other.layer(node.name).kind for node in other.nodes]
    row = {"cholesky": "orthogonal-conv2d", "soc": "skew-conv2d"}.get(layer, f"{layer}-conv2d")
    assert kinds.count(row) == 11
    shapes = [[node.shape for node in network.nodes[2:]] for network in (skew, other)]
    assert shapes[1][-len(shapes[0]) :] == shapes[0]


def test_reflectors_have_windows_where_their_image_is_small() -> None:
    wish = {"name": "lipconvnet", "layer": "bro", "width": 8}
    skeleton = blueprint(wish).skeleton
    layers = [skeleton.layer(node.name) for node in skeleton.nodes]
    windows = [tuple(layer.weight.shape[2:]) for layer in layers if layer.kind == "bro-conv2d"]
    assert windows == [(1, 1), (1, 1), (1, 1), (3, 3), (1, 1), (1, 1)]


def test_a_curvature_head_reads_all_features() -> None:
    skeleton = blueprint({"name": "lipconvnet", "head": "crc", "classes": 100}).skeleton
    first, _, last = (node.shape for node in skeleton.nodes[-3:])
    assert (skeleton.nodes[-4].shape, first, last) == ((2048,), (4096,), (100,))


@pytest.mark.parametrize(
    ("width", "choice"),
    list(zip(itertools.cycle((4, 6, 8)), LIPCONVNET_CHOICES, strict=False)),
    ids=lambda value: str(value) if isinstance(value, int) else "-".join(value.values()),
)
def test_the_file_gets_the_radii_of_the_network(width: int, choice: dict[str, str]) -> None:
    network = build(
        {**TINY, **choice, "width": width, **hidden(choice, 12)},
        generator=torch.Generator().manual_seed(1),
    )
    if choice["head"] != "crc":
        # Every layer keeps its promise: nothing is left but the pixels' standard deviation.
        constant = lipschitz_constant(CompiledNetwork.compile(network.deployed()))
        assert constant * STD <= 1.001
    x = np.random.default_rng(0).random((6, 3, 8, 8), dtype=np.float32)
    radii_of_network_and_file(network, x, "crc" if choice["head"] == "crc" else "lipschitz")
    rounding_is_covered(network, x)
    spreads = spreads_of(network, torch.from_numpy(x))
    for before, after in itertools.pairwise(spreads):
        assert after <= before * (1 + 1e-4)
    assert spreads[-1] > 0.0


@pytest.mark.parametrize("depth", part(list(PUBLISHED), 0, 2))
def test_every_member_gets_its_radii_from_its_file(depth: int) -> None:
    """Skew layers of the full depth on full images, narrow."""
    choice = {
        name: list(table)[depth // 5 % len(table)]
        for name, table in (("head", HEADS), ("pooling", POOLS), ("activation", FOLDS))
    }
    network = build(
        {"name": "lipconvnet", "depth": depth, "width": 6, **choice, **hidden(choice, 16)},
        generator=torch.Generator().manual_seed(depth),
    )
    x = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)
    radii_of_network_and_file(network, x, "crc" if choice["head"] == "crc" else "lipschitz")


def hidden(choice: dict[str, str], units: int) -> dict[str, int]:
    """The size of a softplus head; other heads have none."""
    return {"hidden": units} if choice["head"] == "crc" else {}


@torch.no_grad()
def spreads_of(network: Network, x: Tensor) -> list[float]:
    """Of a batch x behind each layer from the first to the head: the sum of its variances, which is
    half the mean squared distance of two samples."""
    spreads = []
    for node in network.nodes:
        layer = network.layer(node.name)
        if isinstance(layer, Linear):
            break
        x = layer(x)
        spreads.append(float(x.flatten(1).var(0, correction=0).sum()))
    return spreads


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": 5}, "multiple of its 2 blocks"),
        ({"blocks": 9}, "blocks"),
        ({"width": 1}, "width"),
        ({"pooling": "mean"}, "max"),
        ({"layer": "cayley"}, "aol, bro, cholesky, cpl, sll, soc"),
        ({"layer": ["soc"]}, "aol, bro"),
        ({"layer": "aol", "degree": 8}, "unknown keys"),
        ({"layer": "cpl", "width": 2}, "does not fit"),
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
