"""Networks of AOL, CPL, SLL and BRO layers and an l2 pool are trained, and certified as norm 1; so
are LipConvnets of any layer."""

from __future__ import annotations

import pytest
import torch

from models.architectures.lipconvnet import STD
from tests.workers.training.runs import (
    CPU,
    LEADING,
    LIPCONVNET,
    LIPCONVNET_CHOICES,
    attacked_in_vain,
    config_of,
    images,
    radii_of_network_and_file,
)
from workers.training.data import TrainingData, pixels
from workers.training.loop import train
from workers.training.schedules import Schedule
from workers.verification.bounds.lipschitz import lipschitz_constant
from workers.verification.graph.compiled_network import CompiledNetwork


@pytest.mark.parametrize("method", ["one-lipschitz", "emma"])
def test_they_learn_and_the_file_gets_the_same_radii(method: str) -> None:
    config = config_of(
        method,
        architecture=LEADING,
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


@pytest.mark.parametrize("choice", LIPCONVNET_CHOICES, ids=lambda choice: "-".join(choice.values()))
def test_a_lipconvnet_of_any_parts_learns_and_its_file_gets_the_same_radii(
    choice: dict[str, str],
) -> None:
    """On every other pixel of the middle."""
    curved = choice["head"] == "crc"
    config = config_of(
        "soc-crc" if curved else "soc",
        architecture={
            **LIPCONVNET,
            **choice,
            "input": [1, 12, 12],
            **({"hidden": 16} if curved else {}),
        },
        options={"gamma": 0.1},
        epochs=10,
        batch_size=20,
        learning_rate=1e-2,
        augmentation="none",
    )
    data = images(60)
    data = TrainingData(data.x[:, :, 2:26:2, 2:26:2].contiguous(), data.y)
    network, history = train(config, data, device=CPU)
    assert history[-1]["loss"] < history[0]["loss"]
    x = pixels(data.x)
    with torch.no_grad():
        right = network(x).argmax(1) == data.y
    # Sigmoids, of a slope of 1/4 at most, take longer.
    assert float(right.float().mean()) > 0.3 or choice["activation"] == "sigmoid"
    if not curved:
        # Nothing but the pixels' standard deviation.
        constant = lipschitz_constant(CompiledNetwork.compile(network.deployed()))
        assert constant * STD <= 1.0 + 2e-3
    points = x.numpy()[:4]
    radii = radii_of_network_and_file(network, points, "crc" if curved else "lipschitz")
    attacked_in_vain(network, points, radii)
