"""Networks of AOL, CPL, SLL and BRO layers and an l2 pool are trained, and certified as norm 1."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from models.onnx.deployed import DeployedNetwork
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from tests.workers.training.runs import CPU, config_of, images
from workers.training.loop import train
from workers.training.schedules import Schedule
from workers.verification.bounds.lipschitz import lipschitz_constant
from workers.verification.cascade.run import certify_samples
from workers.verification.graph.compiled_network import CompiledNetwork
from workers.verification.results import CertificationRequest

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
    x = data.x.numpy()[:6].astype(np.float32) / 255
    with torch.no_grad():
        right = network(data.x / 255).argmax(1) == data.y
    assert float(right.float().mean()) > 0.3
    deployed = network.deployed()
    assert lipschitz_constant(CompiledNetwork.compile(deployed)) <= 1.0 + 2e-3
    file = export_onnx(deployed)
    runtime = DeployedNetwork(file, deployed.input_shape, None)
    logits = runtime(x)
    request = CertificationRequest("l2", (Fraction(1, 100),), "lipschitz", attack=None)
    ours, again = (
        certify_samples(
            form,
            x,
            logits.argmax(1),
            np.arange(len(x)),
            request,
            deployed=runtime,
            deployed_logits=logits,
            device=CPU,
        ).radius
        for form in (deployed, import_onnx_bytes(file))
    )
    assert (ours > 0).any()
    np.testing.assert_allclose(again, ours, rtol=0, atol=1e-5)
