"""LipConvnet (Singla and Feizi 2021, arXiv:2105.11417; 2022, arXiv:2211.08453): skew orthogonal
convolutions, every block half as wide and twice as deep, a last layer that is read pair by pair.

Every layer before the last ones has norm 1 by construction, so that the whole certificate is what
the head makes of its features: margins over |w_y - w_j| behind unit rows, distances to the
boundaries of a softplus layer (CRC), or margins over sqrt(2) behind orthonormal rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from models.architectures.layer_rows import LayerRow

__all__ = ["HEADS", "POOLS", "lipconvnet"]

Row = Mapping[str, Any]

MAX_DEPTH = 200
#: Of CIFAR-10's pixels; one over it is the Lipschitz constant before the head.
STD = 0.2507

#: What halves the channels at the end of a block, in the place of an activation.
POOLS: dict[str, Row] = {
    "max": {"kind": "pair-max"},
    "projection": {"kind": "projection-pool"},
}


def _unit_rows(row: LayerRow, classes: int) -> list[Row]:
    return [{"kind": "normalized-head", "out": classes}]


def _orthonormal_rows(row: LayerRow, classes: int) -> list[Row]:
    return [{"kind": "orthogonal-linear", "out": classes}]


def _curvature(row: LayerRow, classes: int) -> list[Row]:
    hidden = row.integer("hidden", 4096, maximum=1 << 16)
    return [
        {"kind": "summed-linear", "out": hidden},
        {"kind": "softplus"},
        {"kind": "summed-linear", "out": classes},
    ]


#: Last layers, behind the flattened features.
HEADS: dict[str, Callable[[LayerRow, int], list[Row]]] = {
    "crc": _curvature,
    "lln": _unit_rows,
    "orthogonal": _orthonormal_rows,
}


def lipconvnet(row: LayerRow, activation: Sequence[Row]) -> list[Row]:
    """``depth`` skew convolutions (5, 10, ... 40) in ``blocks`` and one before them.

    ``width`` channels to begin with; each block ends in space-to-depth, a convolution of four times
    its channels and ``pooling`` of pairs, the last one in 1 x 1 convolutions and ``head``: of
    ``crc`` behind all channels, with ``hidden`` softplus units. ``mean`` of the pixels is by
    channel, ``std`` one for all.
    """
    blocks = row.integer("blocks", 5, maximum=8)
    depth = row.integer("depth", 5, maximum=MAX_DEPTH)
    if depth % blocks:
        row.refuse(f'needs "depth", a multiple of its {blocks} blocks, not {depth}')
    width = row.integer("width", 32, minimum=2, maximum=1 << 12)
    pool = POOLS[row.choice("pooling", "max", POOLS)]
    head = row.choice("head", "lln", HEADS)
    degree = row.integer("degree", 8)
    mean, std = row.get("mean", [0.5]), row.number("std", STD, 1e-3, 1e3)
    pixels = {"mean": mean, "std": [std] * len(mean) if isinstance(mean, list | tuple) else [std]}

    def skew(channels: int, kernel: int = 3) -> Row:
        return {"kind": "skew-conv2d", "out": channels, "kernel": kernel, "degree": degree}

    each, channels = depth // blocks, width
    layers: list[Row] = [
        {"kind": "normalize", **pixels},
        skew(channels),
        *activation,
    ]
    for _ in range(blocks - 1):
        layers += [skew(channels), *activation] * (each - 1)
        layers += [{"kind": "space-to-depth", "block": 2}, skew(4 * channels), pool]
        channels *= 2
    channels *= 4
    layers.append({"kind": "space-to-depth", "block": 2})
    layers += [skew(channels, 1), *activation] * (each - 1)
    layers += [skew(channels, 1), *(activation if head == "crc" else (pool,)), {"kind": "flatten"}]
    return [*layers, *HEADS[head](row, row.integer("classes", 10, minimum=2))]
