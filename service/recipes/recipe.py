"""What a training recipe is: one row of data, and what is known of how far it gets.

Epochs of the papers' schedules are written as shares of the run, so that a run of other length
keeps its form. All schedules are clamped at their ends (the papers' code overshoots). Where there
is no ``fast`` row, the paper's run is taken in a tenth of the epochs, with a cosine learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CIFAR_EPSILON",
    "CIFAR_LINF",
    "CIFAR_LINF_LARGE",
    "COSINE",
    "MNIST",
    "MNIST_EPSILON",
    "MNIST_LINF",
    "MNIST_LINF_LARGE",
    "TINY_IMAGENET",
    "Reached",
    "Recipe",
    "Settings",
    "constant",
    "falling",
    "published",
    "ramp",
    "smooth",
]

Settings = Mapping[str, Any]

MNIST, CIFAR10, CIFAR100, TINY_IMAGENET = "mnist", "cifar10", "cifar100", "tiny-imagenet"
#: The published epsilons, l2 in pixel units.
CIFAR_EPSILON, MNIST_EPSILON = "36/255", "1.58"
#: Those for linf.
CIFAR_LINF, CIFAR_LINF_LARGE, MNIST_LINF, MNIST_LINF_LARGE = "2/255", "8/255", "0.1", "0.3"

COSINE: Settings = {"points": [[0.0, 1.0], [1.0, 0.0]], "shape": "cosine"}


@dataclass(frozen=True)
class Reached:
    """Shares of the test split in %, at the recipe's epsilon: classified correctly, still so under
    attack, and certified; None where it is not known.

    ``runs``: how many were made, None where that is not said; of several, the last one's figures.
    What is published was certified with power iteration or without regard to rounding, which is no
    proof; what is measured is sound.
    """

    status: Literal["measured", "published, not reproduced"]
    clean: float | None
    attacked: float | None
    certified: float
    runs: int | None
    hardware: str
    source: str


def published(
    clean: float | None, attacked: float | None, certified: float, source: str
) -> tuple[Reached, ...]:
    """What a paper or its code says of its run, on GPUs."""
    status: Literal["published, not reproduced"] = "published, not reproduced"
    return (Reached(status, clean, attacked, certified, None, "GPU", source),)


@dataclass(frozen=True)
class Recipe:
    """One row: the hyperparameters that differ from the defaults, for an architecture and the
    epsilon it was made for. ``reached``: empty where no figure is known of just this run."""

    method: str
    dataset: str
    name: str
    architecture: str | dict[str, JsonValue]
    epsilon: str
    source: str
    settings: Settings
    reached: tuple[Reached, ...] = ()
    norm: Literal["l2", "linf"] = "l2"


def constant(value: float) -> Settings:
    """The same all the run."""
    return {"points": [[0.0, value]]}


def smooth(begin: float, end: float, high: float) -> Settings:
    """0 until ``begin``, a smooth rise to ``high`` at ``end`` (shares of the run)."""
    return {"points": [[begin, 0.0], [end, high]], "shape": "smooth"}


def ramp(begin: float, end: float, low: float = 0.0, high: float = 1.0) -> Settings:
    """``low`` until ``begin``, a line to ``high`` at ``end`` (shares of the run)."""
    return {"points": [[begin, low], [end, high]]}


def falling(begin: float, end_rate: float) -> Settings:
    """Constant until ``begin``, then exponential to ``end_rate`` of the first value."""
    return {"points": [[begin, 1.0], [1.0, end_rate]], "shape": "log"}
