"""Recipes without a certificate in mind: plain cross-entropy, the baseline."""

from __future__ import annotations

from service.recipes.recipe import (
    CIFAR10,
    CIFAR_EPSILON,
    COSINE,
    MNIST,
    MNIST_EPSILON,
    Recipe,
    Settings,
    published,
)

__all__ = ["ROWS"]

_TABLE = "Huang et al. 2021, table 1"
_STANDARD: Settings = {"epochs": 40, "batch_size": 128, "learning_rate_schedule": COSINE}

ROWS = (
    Recipe(
        *("standard", MNIST, "paper", "mnist-4c3f", MNIST_EPSILON, "plain training"),
        _STANDARD,
        published(99.0, 45.4, 0.0, _TABLE),
    ),
    Recipe(
        *("standard", CIFAR10, "paper", "cifar-6c2f", CIFAR_EPSILON, "plain training"),
        {**_STANDARD, "epochs": 100, "augmentation": "crop-flip"},
        published(87.5, 32.5, 0.0, _TABLE),
    ),
)
