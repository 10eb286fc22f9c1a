"""Small training runs: images that are easy to learn, and a config per method."""

from __future__ import annotations

from dataclasses import replace

import torch

from service.contract.catalogue.training_methods import TRAINING_METHODS
from workers.training.config import TrainingConfig
from workers.training.data import TrainingData
from workers.training.schedules import Schedule

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
