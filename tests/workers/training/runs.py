"""Small training runs: images that are easy to learn, a config per method, and the radii of what
comes out, which its file must get too."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from models.network import Network
from models.onnx.deployed import DeployedNetwork
from models.onnx.exporter.export import export_onnx
from models.onnx.importer import import_onnx_bytes
from service.contract.catalogue.training_methods import TRAINING_METHODS
from workers.training.config import TrainingConfig
from workers.training.data import TrainingData
from workers.training.schedules import Schedule
from workers.verification.cascade.run import certify_samples
from workers.verification.results import CertificationRequest

CPU = torch.device("cpu")
ACTIVATION = {
    "emma": "maxmin",
    "local-lip-b": "relu-theta",
    "local-lip-g": "clamped-maxmin",
    "soc": "maxmin",
    "soc-crc": "householder",
}
#: 2 channels in two blocks of one convolution.
LIPCONVNET = {
    "name": "lipconvnet",
    "input": [1, 28, 28],
    "blocks": 2,
    "depth": 2,
    "width": 2,
    "mean": [0.2],
}
ARCHITECTURE: dict[str, dict[str, object]] = {
    "soc": LIPCONVNET,
    "soc-crc": {**LIPCONVNET, "head": "crc", "hidden": 32},
}
_BOX = {"l1": 1e-4, "regularization": 0.5}
_ATTACK = {**_BOX, "attack_steps": 2, "attack_restarts": 2}
_SMALL_BOX = {**_ATTACK, "subselection_ratio": 0.5, "relu_shrinkage": 0.8}
_BETWEEN = {**_ATTACK, "alpha": 0.3, "attack_scale": 1.5}
#: In which no part of a loss is switched off.
OPTIONS: dict[str, dict[str, object]] = {
    "ibp": {**_BOX},
    "crown-ibp": {**_BOX, "beta": 0.5},
    "sabr": {**_SMALL_BOX},
    "taps": {**_ATTACK, "attacked_activations": 1, "gradient_weight": 2.0},
    "staps": {**_SMALL_BOX, "attacked_activations": 1, "gradient_weight": 2.0},
    "mtl-ibp": {**_BETWEEN},
    "cc-ibp": {**_BETWEEN},
    "exp-ibp": {**_BETWEEN},
    "colt": {"attack_steps": 2, "projections": 4, "mix": 0.5},
    "cap": {"projections": 4},
    "soc": {"gamma": 0.1, "shift": "emma", "loss": "logit-annealing"},
    "soc-crc": {"gamma": 0.1, "curvature": 0.01},
}


def images(count: int = 60, *, classes: int = 10) -> TrainingData:
    """Bright squares at ten places: easy to learn."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    x = (torch.rand(count, 1, 28, 28, generator=generator) * 60).to(torch.uint8)
    for row, label in enumerate(y.tolist()):
        top, left = 3 + 5 * (label % 5), 5 + 12 * (label // 5)
        x[row, 0, top : top + 4, left : left + 8] = 255
    return TrainingData(x, y)


def config_of(method: str = "emma", **changes: object) -> TrainingConfig:
    """Two epochs of ``method`` on ``images``."""
    row = TRAINING_METHODS[method]
    config = TrainingConfig(
        method=method,
        bears_bfloat16=row.bfloat16,
        bfloat16_on_cpu=row.bfloat16_on_cpu,
        compiles=row.compiled,
        architecture=ARCHITECTURE.get(method, "mnist-small"),
        options=OPTIONS.get(method, {}),
        epsilon=0.3,
        epochs=2,
        batch_size=16,
        activation=ACTIVATION.get(method, "relu"),
        epsilon_schedule=Schedule(((0.0, 0.1), (1.0, 1.0))),
        kappa_schedule=Schedule(((0.0, 1.0), (0.5, 0.0))),
        augmentation="shift",
        validation_samples=10,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def radii_of_network_and_file(
    network: Network, x: NDArray[np.float32], method: str = "lipschitz"
) -> NDArray[np.float64]:
    """Certified l2 radii of the predictions for x; some are positive, and the exported file, read
    again as if it were uploaded, gets the same ones up to 1e-5."""
    deployed = network.deployed()
    data = export_onnx(deployed)
    runtime = DeployedNetwork(data, deployed.input_shape, None)
    logits = runtime(x)
    request = CertificationRequest("l2", (Fraction(1, 100),), method, attack=None)
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
        for form in (deployed, import_onnx_bytes(data))
    )
    assert (ours > 0).any()
    np.testing.assert_allclose(again, ours, rtol=0, atol=1e-5)
    return ours
