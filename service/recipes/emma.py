"""Recipes of EMMA (Hu, Zou, Wang, Leino, Fredrikson 2023), published and ours."""

from __future__ import annotations

from pydantic import JsonValue

from service.recipes.recipe import (
    CIFAR10,
    CIFAR100,
    CIFAR_EPSILON,
    COSINE,
    MNIST,
    MNIST_EPSILON,
    TINY_IMAGENET,
    Reached,
    Recipe,
    Settings,
    published,
    ramp,
)

__all__ = ["ROWS"]

_EMMA = "Hu et al. 2023 (arXiv:2301.12549) and 2024 (arXiv:2310.02513)"
_GENERATED = "README of the code of 2024, with generated images, which this recipe leaves out"

_EMMA_CIFAR: Settings = {
    "epochs": 800,
    "optimizer": "nadam",
    "lookahead": 6,
    "warm_up": 20 / 800,
    "learning_rate_schedule": COSINE,
    "epsilon_schedule": ramp(0.0, 0.5, 0.1, 3.0),
    "clip_norm": 3.0,
    "power_steps": 10,
    "augmentation": "crop-flip",
    "activation": "maxmin",
}
_EMMA_FAST: Settings = {
    "epochs": 24,
    "batch_size": 512,
    "learning_rate": 2e-2,
    "learning_rate_schedule": COSINE,
    "warm_up": 0.03,
    "epsilon_schedule": ramp(0.0, 0.5, 0.1, 1.3),
    "activation": "maxmin",
}
_LIRESNET: dict[str, JsonValue] = {"name": "liresnet", "depth": 12, "width": 512}
_FLAT_MNIST: dict[str, JsonValue] = {
    "name": "orthogonal-dense",
    "input": [1, 28, 28],
    "widths": [512, 512, 512],
}

ROWS = (
    Recipe(
        *("emma", CIFAR10, "paper", _LIRESNET, CIFAR_EPSILON, _EMMA, _EMMA_CIFAR),
        published(87.0, None, 78.1, _GENERATED),
    ),
    Recipe(
        *("emma", CIFAR100, "paper", {**_LIRESNET, "classes": 100}, CIFAR_EPSILON),
        *(_EMMA, _EMMA_CIFAR),
        published(62.1, None, 50.1, _GENERATED),
    ),
    Recipe(
        *("emma", TINY_IMAGENET, "paper"),
        {**_LIRESNET, "input": [3, 64, 64], "classes": 200},
        *(CIFAR_EPSILON, _EMMA, _EMMA_CIFAR),
        published(48.4, None, 37.0, _GENERATED),
    ),
    Recipe(
        *("emma", MNIST, "fast", _FLAT_MNIST, MNIST_EPSILON, "ours", _EMMA_FAST),
        (
            Reached(
                *("measured", 97.45, 75.54, 67.49, 3),
                "2 CPU cores, 380 s with the certification",
                "docs/results.md",
            ),
        ),
    ),
)
