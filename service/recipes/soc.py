"""Recipes of LipConvnets: skew orthogonal convolutions behind unit rows (Singla, Singla, Feizi
2022) or a softplus head (Singla and Feizi 2022), published and ours for processors.

The weight of the head's curvature is not published; ours is ``CURVATURE``. ``fast`` is a narrower
and shorter run of the same kind. ``reached`` is empty where no figure is known of just this run.
"""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from service.recipes.recipe import (
    CIFAR10,
    CIFAR100,
    CIFAR_EPSILON,
    COSINE,
    TINY_IMAGENET,
    Reached,
    Recipe,
    Settings,
    published,
)

__all__ = ["ROWS"]

_SOC = "Singla, Singla, Feizi 2022 (arXiv:2108.04062), published code"
_CRC = "Singla, Feizi 2022 (arXiv:2211.08453), published code"
_TABLE = "Prach, Lampert 2022 (arXiv:2208.03160), tables 3 and 4; its network has no pooling"
_CURVED = "Prach et al. 2024 (arXiv:2311.16833), table 4"
_TINY = "Xu, Li, Li 2022 (LOT), authors' table; cross-entropy alone"

CURVATURE = 0.01

_PAPER: Settings = {
    "epochs": 200,
    "batch_size": 128,
    "optimizer": "sgd-normalized",
    "learning_rate": 0.1,
    "learning_rate_schedule": {"points": [[0.0, 1.0], [0.5, 0.1], [0.75, 0.01]], "shape": "steps"},
    "weight_decay": 5e-4,
    "augmentation": "crop-flip",
    "activation": "maxmin",
    "options": {"gamma": 0.1},
}
_PAPER_CRC: Settings = {**_PAPER, "clip_norm": 1.0, "options": {"curvature": CURVATURE}}
#: For two processors: what a long run does in steps is done by a wave.
_SHORT: dict[str, Any] = {"epochs": 20, "learning_rate_schedule": COSINE, "warm_up": 0.02}

_CIFAR_MEAN: list[JsonValue] = [0.4914, 0.4822, 0.4465]
_CIFAR: dict[str, JsonValue] = {"name": "lipconvnet", "depth": 15, "mean": _CIFAR_MEAN}
_SMALL: dict[str, JsonValue] = {**_CIFAR, "depth": 5, "width": 8}
_CURVED_HEAD: dict[str, JsonValue] = {"head": "crc"}
_SMALL_HEAD: dict[str, JsonValue] = {"head": "crc", "hidden": 1024}
_HUNDRED: dict[str, JsonValue] = {"classes": 100}
#: 200 classes of 64 x 64 pixels.
_TINY_IMAGES: dict[str, JsonValue] = {"input": [3, 64, 64], "classes": 200}


def _rows(
    dataset: str,
    data: dict[str, JsonValue],
    unit_rows: tuple[Reached, ...] = (),
    curved: tuple[Reached, ...] = (),
) -> tuple[Recipe, ...]:
    """``paper`` and ``fast`` of both methods on one data set."""

    def row(method: str, name: str, *parts: dict[str, JsonValue]) -> Recipe:
        base = _PAPER_CRC if method == "soc-crc" else _PAPER
        architecture: dict[str, JsonValue] = {}
        for part in (*parts, data):
            architecture |= part
        if name == "fast":
            return Recipe(
                *(method, dataset, name, architecture, CIFAR_EPSILON, "ours"), {**base, **_SHORT}
            )
        source, reached = (_CRC, curved) if method == "soc-crc" else (_SOC, unit_rows)
        return Recipe(method, dataset, name, architecture, CIFAR_EPSILON, source, base, reached)

    return (
        row("soc", "paper", _CIFAR),
        row("soc", "fast", _SMALL),
        row("soc-crc", "paper", _CIFAR, _CURVED_HEAD),
        row("soc-crc", "fast", _SMALL, _SMALL_HEAD),
    )


ROWS = (
    *_rows(
        CIFAR10,
        {},
        published(76.4, None, 63.0, _TABLE),
        published(79.4, None, 67.0, _CURVED),
    ),
    *_rows(CIFAR100, _HUNDRED, published(47.8, None, 34.8, _TABLE)),
    *_rows(TINY_IMAGENET, _TINY_IMAGES, published(32.26, None, 21.36, _TINY)),
)
