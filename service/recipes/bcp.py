"""Recipes of BCP (Lee, Lee, Park 2020), and of LMT as that paper compares with it."""

from __future__ import annotations

from service.recipes.recipe import (
    CIFAR10,
    CIFAR_EPSILON,
    MNIST,
    MNIST_EPSILON,
    TINY_IMAGENET,
    Recipe,
    Settings,
    published,
    ramp,
)

__all__ = ["ROWS"]

_BCP = "Lee et al. 2020, published code"
_LMT = f"{_BCP} (its comparison)"
_README = "README of the published code"

_BCP_MNIST: Settings = {
    "epochs": 60,
    "batch_size": 50,
    "learning_rate": 3e-4,
    "learning_rate_schedule": {
        "points": [[0.0, 1.0], [21 / 60, 0.1], [30 / 60, 0.01], [40 / 60, 0.001]],
        "shape": "steps",
    },
    "epsilon_schedule": ramp(1 / 60, 21 / 60),
    "kappa_schedule": ramp(1 / 60, 21 / 60, 1.0, 0.0),
    "rounds": 10,
}
_BCP_CIFAR: Settings = {
    "epochs": 200,
    "batch_size": 128,
    "learning_rate_schedule": {
        "points": [[0.0, 1.0], *([(140 + 10 * k) / 200, 0.5 ** (k + 1)] for k in range(6))],
        "shape": "steps",
    },
    "epsilon_schedule": ramp(10 / 200, 131 / 200),
    "kappa_schedule": ramp(10 / 200, 131 / 200, 1.0, 0.0),
    "augmentation": "crop-flip",
}

ROWS = (
    Recipe(
        *("lmt", MNIST, "paper", "mnist-4c3f", MNIST_EPSILON, _LMT, _BCP_MNIST),
        published(86.48, 53.56, 40.55, _README),
    ),
    Recipe(
        *("lmt", CIFAR10, "paper", "cifar-6c2f", CIFAR_EPSILON, _LMT, _BCP_CIFAR),
        published(63.05, 58.32, 38.11, _README),
    ),
    Recipe(
        *("bcp", MNIST, "paper", "mnist-4c3f", MNIST_EPSILON, _BCP, _BCP_MNIST),
        published(92.54, 66.23, 48.20, _README),
    ),
    Recipe(
        *("bcp", CIFAR10, "paper", "cifar-6c2f", CIFAR_EPSILON, _BCP, _BCP_CIFAR),
        published(65.72, 60.78, 51.30, _README),
    ),
    Recipe(
        *("bcp", TINY_IMAGENET, "paper", "tiny-8c2f", CIFAR_EPSILON),
        f"{_BCP} for CIFAR-10",
        _BCP_CIFAR,
        published(28.76, 26.64, 20.08, f"{_README}; its script is not published"),
    ),
)
