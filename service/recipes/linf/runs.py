"""What the published runs of the IBP family have in common.

CNN7 with batch norm, initial values and regularisers of Shi et al. 2021, a smooth rise of epsilon,
a learning rate that falls to a fifth twice.
"""

from __future__ import annotations

from typing import Any

from service.recipes.recipe import CIFAR10, MNIST, Reached, Recipe, Settings, constant, smooth

__all__ = ["ONE_STEP", "attack", "cifar_paper", "cifar_run", "mnist_paper", "mnist_run"]

_MNIST: Settings = {"epochs": 70, "batch_size": 256}
_CIFAR: Settings = {"batch_size": 128, "augmentation": "crop-flip"}


def _run(
    base: Settings,
    epochs: int,
    ramp: tuple[int, int],
    falls: tuple[int, int],
    factor: float,
    robust: float,
    options: dict[str, Any],
) -> Settings:
    """``ramp``, ``falls``: epochs in which epsilon rises, and in which the rate falls to a fifth.

    ``factor``: last epsilon of the training in epsilons; ``robust``: weight of the robust loss.
    """
    rates = [[0.0, 1.0], [falls[0] / epochs, 0.2], [falls[1] / epochs, 0.04]]
    return {
        **base,
        "epochs": epochs,
        "learning_rate": 5e-4,
        "learning_rate_schedule": {"points": rates, "shape": "steps"},
        "epsilon_schedule": smooth(ramp[0] / epochs, ramp[1] / epochs, factor),
        "kappa_schedule": constant(round(1.0 - robust, 3)),
        "clip_norm": 10.0,
        "options": {"regularization": 0.5, **options},
    }


def mnist_run(
    ramp: tuple[int, int], factor: float, robust: float, options: dict[str, Any]
) -> Settings:
    """70 epochs on MNIST."""
    return _run(_MNIST, 70, ramp, (50, 60), factor, robust, options)


def cifar_run(
    epochs: int,
    ramp: tuple[int, int],
    falls: tuple[int, int],
    factor: float,
    robust: float,
    options: dict[str, Any],
) -> Settings:
    """So many epochs on CIFAR-10."""
    return _run(_CIFAR, epochs, ramp, falls, factor, robust, options)


def mnist_paper(method: str, epsilon: str, source: str, settings: Settings) -> Recipe:
    """A published run on MNIST."""
    row = (method, MNIST, "paper", "mnist-cnn7-bn", epsilon, source, settings)
    return Recipe(*row, norm="linf")


def cifar_paper(
    method: str, epsilon: str, source: str, settings: Settings, reached: tuple[Reached, ...] = ()
) -> Recipe:
    """A published run on CIFAR-10."""
    row = (method, CIFAR10, "paper", "cifar-cnn7-bn", epsilon, source, settings, reached)
    return Recipe(*row, norm="linf")


def attack(steps: int, restarts: int) -> dict[str, Any]:
    """Options of an attack in training."""
    return {"attack_steps": steps, "attack_restarts": restarts}


#: One step from a random start that ends in a corner, as far as it may go.
ONE_STEP: dict[str, Any] = {**attack(1, 1), "attack_step_size": 10.0}
