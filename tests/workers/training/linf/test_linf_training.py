"""Tiny trainings end to end: what is trained for boxes is certified, what is not is not; the
certificate is the deployed network's and knows nothing of shrinking or batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.network import Network
from tests.workers.training.runs import CPU, config_of, images
from tests.workers.verification.certification import certify
from workers.training.loop import train
from workers.training.schedules import Schedule
from workers.training.trainer import build_network

ARCHITECTURE = {
    "input": [1, 28, 28],
    "init": "ibp",
    "layers": [
        {"kind": "conv2d", "out": 8, "kernel": 4, "stride": 4},
        {"kind": "batch-norm"},
        {"kind": "relu"},
        {"kind": "flatten"},
        {"kind": "linear", "out": 10},
    ],
}
#: The same without batch norm, and a dense layer more: for what is no interval bound.
CHAIN = {
    "input": [1, 28, 28],
    "layers": [
        {"kind": "conv2d", "out": 8, "kernel": 4, "stride": 4},
        {"kind": "relu"},
        {"kind": "flatten"},
        {"kind": "linear", "out": 20},
        {"kind": "relu"},
        {"kind": "linear", "out": 10},
    ],
}
EPSILON = "1/10"


def certified_share(network: Network, method: str) -> float:
    data = images(120)
    found = certify(
        network.deployed().eval(),
        data.x[:40].float().numpy() / np.float32(255),
        (EPSILON,),
        data.y[:40].numpy(),
        method=method,
        norm="linf",
        radius=False,
        attack=None,
    )
    return float(found.certified.mean())


@pytest.mark.parametrize(
    ("method", "verifier"),
    [("ibp", "ibp"), ("crown-ibp", "crown"), ("sabr", "crown"), ("mtl-ibp", "crown")]
    + [("cap", "cap")],
)
def test_a_trained_network_is_certified_and_an_untrained_one_is_not(
    method: str, verifier: str
) -> None:
    """Batch norm in it: trained by the batch's statistics, certified by the running ones. CAP
    has none, and few projections."""
    config = config_of(
        method,
        architecture=CHAIN if method == "cap" else ARCHITECTURE,
        epsilon=0.1,
        norm="linf",
        epochs=15,
        learning_rate=1e-2,
        augmentation="none",
        kappa_schedule=Schedule.constant(0.2),
    )
    network, history = train(config, images(120), device=CPU)
    assert history[-1]["validation_accuracy"] >= 0.9
    assert certified_share(build_network(config), verifier) <= 0.2
    assert certified_share(network, verifier) >= 0.5


def test_shrinking_reaches_no_certificate() -> None:
    """The same weights have the same certificate, whatever the options of their training say."""
    networks = []
    for shrinkage in (1.0, 0.01):
        options = {"relu_shrinkage": shrinkage, "attack_steps": 1}
        config = config_of("sabr", architecture=ARCHITECTURE, epochs=1, options=options)
        network, _ = train(config, images(), device=CPU)
        networks.append(network)
    weights = networks[0].state_dict()
    assert not all(torch.equal(t, weights[n]) for n, t in networks[1].state_dict().items())
    networks[1].load_state_dict(weights)
    x = images(20).x.float().numpy() / np.float32(255)
    first, second = (
        certify(network.deployed().eval(), x, ("1/100",), norm="linf", method="ibp", attack=None)
        for network in networks
    )
    assert np.array_equal(first.radius, second.radius)
    assert np.array_equal(first.certified, second.certified)
