"""Our recipes for linf: small networks, for two processor cores.

No BatchNorm and no clean loss on MNIST: with a schedule as short as these, either costs a third of
the steps that the time allows.
"""

from __future__ import annotations

from typing import Any

from service.recipes.linf.runs import ONE_STEP
from service.recipes.recipe import (
    CIFAR10,
    CIFAR_LINF,
    MNIST,
    MNIST_LINF,
    MNIST_LINF_LARGE,
    Recipe,
    Settings,
    ramp,
)

__all__ = ["ROWS"]

_OURS = "ours"


def _run(epochs: int, rise: float, factor: float, options: dict[str, Any]) -> Settings:
    """``rise``: share of the run in which epsilon grows to ``factor`` epsilons, and the clean loss
    gives way."""
    return {
        "epochs": epochs,
        "batch_size": 128,
        "learning_rate": 1e-3,
        "learning_rate_schedule": {
            "points": [[0.0, 1.0], [max(rise, 0.4), 1.0], [1.0, 0.0]],
            "shape": "cosine",
        },
        "epsilon_schedule": ramp(0.0, rise, 0.0, factor),
        "kappa_schedule": ramp(0.0, rise, 1.0, 0.0),
        "clip_norm": 10.0,
        "options": options,
    }


def _mnist(method: str, epsilon: str, settings: Settings) -> Recipe:
    return Recipe(*(method, MNIST, "fast", "mnist-convmed", epsilon, _OURS, settings), norm="linf")


def _cifar(method: str, settings: Settings) -> Recipe:
    # Fewer samples for the curve: boxes of a network with batch norm take as long as its training.
    plan = {**settings, "augmentation": "crop-flip", "validation_samples": 1000}
    row = (method, CIFAR10, "fast", "cifar-cnn5-bn", CIFAR_LINF, _OURS, plan)
    return Recipe(*row, norm="linf")


ROWS = (
    _mnist("ibp", MNIST_LINF, _run(30, 0.4, 1.8, {})),
    _mnist("ibp", MNIST_LINF_LARGE, _run(30, 0.5, 1.15, {})),
    _cifar("ibp", _run(50, 0.5, 1.0, {})),
    _mnist("sabr", MNIST_LINF, _run(24, 0.4, 1.6, {"subselection_ratio": 0.6, **ONE_STEP})),
    _mnist("sabr", MNIST_LINF_LARGE, _run(24, 0.5, 1.1, {"subselection_ratio": 0.9, **ONE_STEP})),
    _mnist("mtl-ibp", MNIST_LINF, _run(20, 0.4, 1.6, {"alpha": 0.1, **ONE_STEP})),
    _mnist("mtl-ibp", MNIST_LINF_LARGE, _run(20, 0.5, 1.1, {"alpha": 0.5, **ONE_STEP})),
    _cifar("mtl-ibp", _run(36, 0.5, 1.0, {"alpha": 0.1, **ONE_STEP})),
)
