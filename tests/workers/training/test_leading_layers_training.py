"""Networks of AOL, CPL, SLL and BRO layers and an l2 pool are trained, and certified as norm 1; so
are LipConvnets of any layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.architectures.lipconvnet import LAYERS, STD
from tests.workers.training.runs import (
    CPU,
    LIPCONVNET,
    config_of,
    images,
    radii_of_network_and_file,
)
from workers.training.data import TrainingData, pixels
from workers.training.loop import train
from workers.training.schedules import Schedule
from workers.verification.bounds.lipschitz import lipschitz_constant
from workers.verification.graph.compiled_network import CompiledNetwork

ARCHITECTURE: dict[str, Any] = {
    "input": [1, 28, 28],
    "layers": [
        {"kind": "aol-conv2d", "out": 8, "kernel": 4, "stride": 4},
        {"kind": "maxmin"},
        {"kind": "cpl-conv2d"},
        {"kind": "bro-conv2d", "kernel": 3},
        {"kind": "maxmin"},
        {"kind": "sll-conv2d", "inner": 6},
        {"kind": "l2-pool2d", "kernel": [1, 2]},
        {"kind": "flatten"},
        {"kind": "bro-linear"},
        {"kind": "maxmin"},
        {"kind": "cpl-linear", "inner": 10},
        {"kind": "sll-linear", "inner": 10},
        {"kind": "aol-linear", "out": 32},
        {"kind": "maxmin"},
        {"kind": "normalized-linear", "out": 10},
    ],
}


@pytest.mark.parametrize("method", ["one-lipschitz", "emma"])
def test_they_learn_and_the_file_gets_the_same_radii(method: str) -> None:
    config = config_of(
        method,
        architecture=ARCHITECTURE,
        epochs=10,
        batch_size=20,
        learning_rate=1e-2,
        activation="maxmin",
        augmentation="none",
        epsilon_schedule=Schedule.constant(1.0),
    )
    data = images(60)
    network, _ = train(config, data, device=CPU)
    x = pixels(data.x)
    with torch.no_grad():
        right = network(x).argmax(1) == data.y
    assert float(right.float().mean()) > 0.3
    assert lipschitz_constant(CompiledNetwork.compile(network.deployed())) <= 1.0 + 2e-3
    radii_of_network_and_file(network, x.numpy()[:6])


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer != "soc"])
def test_a_lipconvnet_of_any_layer_learns_and_its_file_gets_the_same_radii(layer: str) -> None:
    """On every other pixel of the middle; ``soc`` itself is trained in ``test_soc``."""
    config = config_of(
        "soc",
        architecture={**LIPCONVNET, "input": [1, 12, 12], "layer": layer},
        options={"gamma": 0.1},
        epochs=10,
        batch_size=20,
        learning_rate=1e-2,
        augmentation="none",
    )
    data = images(60)
    data = TrainingData(data.x[:, :, 2:26:2, 2:26:2].contiguous(), data.y)
    network, _ = train(config, data, device=CPU)
    x = pixels(data.x)
    with torch.no_grad():
        right = network(x).argmax(1) == data.y
    assert float(right.float().mean()) > 0.3
    # Nothing but the pixels' standard deviation.
    assert lipschitz_constant(CompiledNetwork.compile(network.deployed())) * STD <= 1.0 + 2e-3
    radii_of_network_and_file(network, x.numpy()[:4])
