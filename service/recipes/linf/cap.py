"""Recipes of CAP (Wong and Kolter 2018; Wong, Schmidt, Metzen, Kolter 2018): single networks, for
both norms.

CIFAR-10 networks have their pixels normalised inside, all channels by 0.225, so that balls stay
balls and epsilons are in pixel units. Cascades are an option; the residual network is left out.
"""

from __future__ import annotations

from typing import Any, Literal

from service.recipes.recipe import (
    CIFAR10,
    CIFAR_EPSILON,
    CIFAR_LINF,
    CIFAR_LINF_LARGE,
    MNIST,
    MNIST_EPSILON,
    MNIST_LINF,
    MNIST_LINF_LARGE,
    Reached,
    Recipe,
    published,
    ramp,
)

__all__ = ["ROWS"]

_CODE = "Wong et al. 2018, published code"
_README = "README of the published code"
_BOARD = "an early table of the SoK on certified robustness"
_AGAIN = "README of BCP's code, its own run of CAP"
_EPOCHS, _RAMP = 60, 20

_COMMON: dict[str, Any] = {
    "epochs": _EPOCHS,
    "batch_size": 50,
    "learning_rate_schedule": {
        "points": [
            [0.0, 1.0],
            *([epoch / _EPOCHS, 0.5 ** (epoch // 10 - 2)] for epoch in (30, 40, 50)),
        ],
        "shape": "steps",
    },
    "options": {"projections": 50},
}
_MNIST: dict[str, Any] = {"learning_rate": 1e-3}
_CIFAR: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "weight_decay": 5e-4,
    "clip_norm": 1.0,
    "augmentation": "crop-flip",
}


def _row(
    dataset: str,
    architecture: str,
    epsilon: str,
    norm: Literal["l2", "linf"],
    first: float,
    reached: tuple[Reached, ...] = (),
) -> Recipe:
    """``first``: the epsilon that the run begins with, in epsilons."""
    settings = {
        **_COMMON,
        **(_MNIST if dataset == MNIST else _CIFAR),
        "epsilon_schedule": ramp(0.0, _RAMP / _EPOCHS, first, 1.0),
    }
    row = ("cap", dataset, "paper", architecture, epsilon, _CODE, settings, reached)
    return Recipe(*row, norm=norm)


_SMALL, _LARGE = "cifar-small-normalized", "cifar-4c3f-normalized"

ROWS = (
    _row(
        *(MNIST, "mnist-small", MNIST_LINF, "linf", 0.1),
        published(98.2, None, 94.2, _README),
    ),
    _row(
        *(MNIST, "mnist-small", MNIST_LINF_LARGE, "linf", 0.01 / 0.3),
        published(None, None, 56.9, _BOARD),
    ),
    _row(
        *(MNIST, "mnist-4c3f", MNIST_EPSILON, "l2", 0.01 / 1.58),
        published(88.39, 62.25, 43.95, _AGAIN),
    ),
    _row(CIFAR10, _SMALL, CIFAR_LINF, "linf", 0.001 / 0.0348),
    _row(CIFAR10, _SMALL, CIFAR_LINF_LARGE, "linf", 0.001 / 0.139),
    _row(
        *(CIFAR10, _LARGE, CIFAR_EPSILON, "l2", 0.001 / 0.6275),
        published(60.14, 55.67, 50.29, _AGAIN),
    ),
)
