"""Recipes of COLT (Balunovic and Vechev 2020): the published runs on CIFAR-10, and shortened ones.

Stages of equal length: epsilon falls, the learning rate falls from stage to stage and, inside each
one, by half again and again. For MNIST nothing is published.
"""

from __future__ import annotations

from typing import Any

from service.recipes.recipe import (
    CIFAR10,
    CIFAR_LINF,
    CIFAR_LINF_LARGE,
    MNIST,
    MNIST_LINF,
    Recipe,
    Settings,
    published,
)

__all__ = ["ROWS"]

_CODE = "Balunovic, Vechev 2020, published code"
_OURS = "ours"
#: Share of a stage in which the new adversary takes over, and in which the rate is halved.
_MIX, _HALVED = 0.3, 0.05


def _schedules(
    stages: int, *, slower: float, first_factor: float, factor: float, halved: float
) -> Settings:
    """``slower``: the learning rate from stage to stage; ``factor``: epsilon backwards from
    ``first_factor`` times epsilon in the last stage; ``halved``: shares between halvings."""
    rates, epsilons = [], []
    for stage in range(stages):
        epsilons.append([stage / stages, first_factor * factor ** (stages - 1 - stage)])
        rates.append([stage / stages, slower**stage])
        halvings = 1
        while _MIX + halvings * halved < 1.0 - halved / 2:
            at = (stage + _MIX + halvings * halved) / stages
            rates.append([at, slower**stage * 0.5**halvings])
            halvings += 1
    return {
        "learning_rate_schedule": {"points": rates, "shape": "steps"},
        "epsilon_schedule": {"points": epsilons, "shape": "steps"},
    }


def _cifar(epochs: int, halved: float, *, large: bool) -> dict[str, Any]:
    """The published runs, of another length perhaps."""
    stages, slower, factor = (3, 0.5, 1.2) if large else (4, 0.75, 1.1)
    return {
        "epochs": epochs * stages,
        "batch_size": 150 if large else 100,
        "optimizer": "sgd",
        "learning_rate": 0.03,
        **_schedules(stages, slower=slower, first_factor=1.05, factor=factor, halved=halved),
        "augmentation": "crop-flip",
        "options": {
            "mix": _MIX,
            "l1": 5e-6 if large else 1e-5,
            "stability": 0.003 if large else 0.005,
        },
    }


_SMALL, _LARGE = "cifar-convmedbig-normalized", "cifar-convmed-normalized"

ROWS = (
    Recipe(
        *("colt", CIFAR10, "paper", _SMALL, CIFAR_LINF, _CODE, _cifar(200, _HALVED, large=False)),
        published(78.4, None, 60.5, "abstract of the paper"),
        norm="linf",
    ),
    Recipe(
        *("colt", CIFAR10, "paper", _LARGE, CIFAR_LINF_LARGE, _CODE),
        _cifar(200, _HALVED, large=True),
        norm="linf",
    ),
    Recipe(
        *("colt", CIFAR10, "fast", _SMALL, CIFAR_LINF, _OURS, _cifar(10, 0.2, large=False)),
        norm="linf",
    ),
    Recipe(
        *("colt", CIFAR10, "fast", _LARGE, CIFAR_LINF_LARGE, _OURS, _cifar(10, 0.2, large=True)),
        norm="linf",
    ),
    Recipe(
        *("colt", MNIST, "fast", "mnist-convmed-normalized", MNIST_LINF, _OURS),
        {
            "epochs": 9,
            "batch_size": 100,
            "learning_rate": 1e-3,
            **_schedules(3, slower=0.7, first_factor=1.05, factor=1.1, halved=0.25),
            "validation_samples": 500,
            "options": {
                "mix": _MIX,
                "l1": 2e-5,
                "stability": 0.005,
                "projections": 10,
                "attack_steps": 5,
                "attack_step_size": 0.5,
            },
        },
        norm="linf",
    ),
)
