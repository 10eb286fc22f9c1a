"""Recipes of CC-IBP, MTL-IBP and Exp-IBP (De Palma et al. 2024), from their published commands."""

from __future__ import annotations

from typing import Any

from service.recipes.linf.runs import (
    ONE_STEP,
    attack,
    cifar_paper,
    cifar_run,
    mnist_paper,
    mnist_run,
)
from service.recipes.recipe import (
    CIFAR_LINF,
    CIFAR_LINF_LARGE,
    MNIST_LINF,
    MNIST_LINF_LARGE,
    Reached,
    Recipe,
    published,
)

__all__ = ["ROWS"]

_CODE = "De Palma et al. 2024, published commands"
_TABLE = "De Palma et al. 2024, table 1, as a reproduction of it quotes it; branch and bound"

_RAMP = (1, 21)


def _mnist(method: str, epsilon: str, factor: float, alpha: float, l1: float) -> Recipe:
    options = {"alpha": alpha, "l1": l1, **ONE_STEP}
    return mnist_paper(method, epsilon, _CODE, mnist_run(_RAMP, factor, 1.0, options))


def _cifar(
    method: str,
    epsilon: str,
    alpha: float,
    l1: float,
    reached: tuple[Reached, ...] = (),
) -> Recipe:
    options: dict[str, Any] = {"alpha": alpha, "l1": l1}
    if epsilon == CIFAR_LINF:
        options |= {**attack(8, 1), "attack_scale": 2.1}
        settings = cifar_run(160, (2, 82), (120, 140), 1.0, 1.0, options)
    else:
        settings = cifar_run(260, (2, 82), (180, 220), 1.0, 1.0, {**options, **ONE_STEP})
    return cifar_paper(method, epsilon, _CODE, settings, reached)


ROWS = (
    _mnist("mtl-ibp", MNIST_LINF, 2.0, 1e-2, 1e-5),
    _mnist("mtl-ibp", MNIST_LINF_LARGE, 4 / 3, 8e-2, 1e-6),
    _cifar("mtl-ibp", CIFAR_LINF, 4e-3, 3e-6, published(80.11, None, 63.24, _TABLE)),
    _cifar("mtl-ibp", CIFAR_LINF_LARGE, 0.5, 1e-7),
    _mnist("cc-ibp", MNIST_LINF, 2.0, 0.1, 2e-6),
    _mnist("cc-ibp", MNIST_LINF_LARGE, 4 / 3, 0.3, 3e-6),
    _cifar("cc-ibp", CIFAR_LINF, 1e-2, 3e-6, published(80.09, None, 63.78, _TABLE)),
    _cifar("cc-ibp", CIFAR_LINF_LARGE, 0.5, 0.0),
    _cifar("exp-ibp", CIFAR_LINF, 9.5e-2, 4e-6, published(80.61, None, 61.65, _TABLE)),
    _cifar("exp-ibp", CIFAR_LINF_LARGE, 0.5, 0.0),
)
