"""Recipes of Local-Lip (Huang, Zhang, Shi, Kolter, Anandkumar 2021)."""

from __future__ import annotations

from service.recipes.recipe import (
    CIFAR10,
    CIFAR_EPSILON,
    MNIST,
    MNIST_EPSILON,
    TINY_IMAGENET,
    Recipe,
    Settings,
    falling,
    published,
    ramp,
)

__all__ = ["ROWS"]

_LOCAL = "Huang et al. 2021, published scripts"
_TABLE = "Huang et al. 2021, table 1"

_LOCAL_MNIST: Settings = {
    "epochs": 300,
    "learning_rate_schedule": falling(175 / 300, 5e-3),
    "epsilon_schedule": ramp(0.0, 0.5, 0.0, 1.75 / 1.58),
    "kappa_schedule": ramp(0.0, 0.5, 1.0, 0.0),
    "power_steps": 5,
    "rounds": 10,
    "activation": "relu-theta",
    "theta": 2.0,
}
_LOCAL_CIFAR: Settings = {
    "epochs": 800,
    "learning_rate_schedule": falling(425 / 800, 1e-3),
    "epsilon_schedule": ramp(20 / 800, 420 / 800, 0.0, 0.1551 * 255 / 36),
    "kappa_schedule": ramp(20 / 800, 420 / 800, 1.0, 0.0),
    "power_steps": 2,
    "augmentation": "crop-flip",
    "activation": "relu-theta",
    "theta": 2.0,
}
_LOCAL_TINY: Settings = {
    "epochs": 250,
    "batch_size": 128,
    "learning_rate": 2.5e-4,
    "learning_rate_schedule": falling(150 / 250, 2e-3),
    "epsilon_schedule": ramp(0.0, 0.5, 0.0, 0.16 * 255 / 36),
    "kappa_schedule": ramp(0.0, 0.5, 1.0, 0.0),
    "sparsity": 0.01,
    "augmentation": "crop-flip",
    "activation": "relu-theta",
    "theta": 1.0,
}
_LOCAL_TINY_MAXMIN: Settings = {
    **{name: value for name, value in _LOCAL_TINY.items() if name != "theta"},
    "learning_rate": 1e-4,
    "learning_rate_schedule": falling(150 / 250, 5e-3),
    "power_steps": 3,
    "activation": "clamped-maxmin",
}

ROWS = (
    Recipe(
        *("local-lip-g", MNIST, "paper", "mnist-4c3f", MNIST_EPSILON, _LOCAL, _LOCAL_MNIST),
        published(96.3, 78.2, 55.8, _TABLE),
    ),
    Recipe(
        *("local-lip-b", MNIST, "paper", "mnist-4c3f", MNIST_EPSILON, f"{_LOCAL} for -G"),
        _LOCAL_MNIST,
        published(93.0, 66.7, 48.7, f"{_TABLE}; its script is not published"),
    ),
    Recipe(
        *("local-lip-b", CIFAR10, "paper", "cifar-6c2f", CIFAR_EPSILON, _LOCAL, _LOCAL_CIFAR),
        published(70.7, 64.8, 54.3, _TABLE),
    ),
    Recipe(
        *("local-lip-g", CIFAR10, "paper", "cifar-6c2f", CIFAR_EPSILON, _LOCAL, _LOCAL_CIFAR),
        published(76.4, 69.2, 51.3, _TABLE),
    ),
    Recipe("local-lip-b", TINY_IMAGENET, "paper", "tiny-8c2f", CIFAR_EPSILON, _LOCAL, _LOCAL_TINY),
    Recipe(
        *("local-lip-b", TINY_IMAGENET, "paper", "tiny-8c2f", CIFAR_EPSILON, _LOCAL),
        _LOCAL_TINY_MAXMIN,
    ),
)
