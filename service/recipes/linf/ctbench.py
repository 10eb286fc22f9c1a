"""Recipes of CTBench (Mao, Balauca, Vechev 2024), which tunes all methods of the IBP family alike.

Crops are filled with zeros here, there with the edge. Their runs of MTL-IBP are left out: its own
paper's are in ``expressive_losses``.
"""

from __future__ import annotations

from typing import Any

from service.recipes.linf.runs import attack, cifar_paper, cifar_run, mnist_paper, mnist_run
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

_SCRIPTS = "CTBench (Mao et al. 2024), published scripts"
_TABLE = "CTBench, table 22; certified by a complete verifier (MN-BaB), in floating point"


def _mnist(
    method: str, epsilon: str, factor: float, robust: float, options: dict[str, Any]
) -> Recipe:
    return mnist_paper(method, epsilon, _SCRIPTS, mnist_run((0, 20), factor, robust, options))


def _cifar(
    method: str,
    epsilon: str,
    factor: float,
    robust: float,
    options: dict[str, Any],
    reached: tuple[Reached, ...] = (),
) -> Recipe:
    small = epsilon == CIFAR_LINF
    shape = (160, (1, 81), (120, 140)) if small else (240, (1, 121), (200, 220))
    settings = cifar_run(*shape, factor, robust, options)
    return cifar_paper(method, epsilon, _SCRIPTS, settings, reached)


ROWS = (
    _mnist("ibp", MNIST_LINF, 2.0, 0.7, {"l1": 2e-6}),
    _mnist("ibp", MNIST_LINF_LARGE, 1.0, 0.7, {"l1": 2e-6}),
    _cifar("ibp", CIFAR_LINF, 1.0, 0.8, {"l1": 1e-6}, published(67.49, None, 55.99, _TABLE)),
    _cifar("ibp", CIFAR_LINF_LARGE, 1.0, 1.0, {}),
    _mnist("crown-ibp", MNIST_LINF, 2.0, 0.7, {"l1": 5e-6}),
    _mnist("crown-ibp", MNIST_LINF_LARGE, 1.0, 0.7, {"l1": 1e-6}),
    _cifar("crown-ibp", CIFAR_LINF, 1.0, 1.0, {"l1": 3e-6}, published(67.6, None, 57.11, _TABLE)),
    _cifar("crown-ibp", CIFAR_LINF_LARGE, 1.0, 1.0, {}),
    _mnist("sabr", MNIST_LINF, 2.0, 0.7, {"subselection_ratio": 0.4, **attack(10, 3)}),
    _mnist("sabr", MNIST_LINF_LARGE, 1.0, 1.0, {"subselection_ratio": 0.9, **attack(5, 3)}),
    _cifar(
        *("sabr", CIFAR_LINF, 1.5, 1.0),
        {"subselection_ratio": 0.1, "relu_shrinkage": 0.8, "l1": 1e-6, **attack(5, 3)},
        published(77.86, None, 63.61, _TABLE),
    ),
    _cifar("sabr", CIFAR_LINF_LARGE, 1.0, 1.0, {"subselection_ratio": 0.9, **attack(5, 3)}),
    _mnist("taps", MNIST_LINF, 2.0, 1.0, {"attacked_activations": 3, "gradient_weight": 4.0}),
    _mnist("taps", MNIST_LINF_LARGE, 4 / 3, 1.0, {"attacked_activations": 2}),
    _cifar(
        *("taps", CIFAR_LINF, 1.0, 1.0),
        {"attacked_activations": 5, "relu_shrinkage": 0.8, "l1": 2e-6, **attack(8, 3)},
        published(74.44, None, 61.27, _TABLE),
    ),
    _cifar(
        *("taps", CIFAR_LINF_LARGE, 1.0, 1.0),
        {"attacked_activations": 1, "gradient_weight": 2.0, **attack(10, 3)},
    ),
    _mnist("staps", MNIST_LINF, 2.0, 1.0, {"subselection_ratio": 0.4}),
    _mnist("staps", MNIST_LINF_LARGE, 1.0, 1.0, {"subselection_ratio": 0.6}),
    _cifar(
        *("staps", CIFAR_LINF, 1.0, 1.0),
        {"gradient_weight": 2.0, "subselection_ratio": 0.1, "relu_shrinkage": 0.8},
        published(77.05, None, 64.21, _TABLE),
    ),
    _cifar(
        *("staps", CIFAR_LINF_LARGE, 1.0, 1.0),
        {"gradient_weight": 2.0, "subselection_ratio": 0.9},
    ),
)
