"""LipConvnet (Singla and Feizi 2021, arXiv:2105.11417; 2022, arXiv:2211.08453): skew orthogonal
convolutions, every block half as wide and twice as deep, a last layer that is read pair by pair.
Any other layer of norm 1 may stand in the convolutions' places.

Every layer before the last ones has norm 1 by construction, so that the whole certificate is what
the head makes of its features: margins over |w_y - w_j| behind unit rows, distances to the
boundaries of a softplus layer (CRC), or margins over sqrt(2) behind orthonormal rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from models.architectures.layer_rows import LayerRow
from models.layers.one_lipschitz.bro import LARGEST_IMAGE

__all__ = ["HEADS", "LAYERS", "POOLS", "lipconvnet"]

Row = Mapping[str, Any]

MAX_DEPTH = 200
#: Of CIFAR-10's pixels; one over it is the Lipschitz constant before the head.
STD = 0.2507

#: What halves the channels at the end of a block, in the place of an activation.
POOLS: dict[str, Row] = {
    "max": {"kind": "pair-max"},
    "projection": {"kind": "projection-pool"},
}


Maker = Callable[[int, int, int], Row]


def _skew(row: LayerRow) -> Maker:
    degree = row.integer("degree", 8)
    return lambda out, kernel, places: {
        "kind": "skew-conv2d",
        "out": out,
        "kernel": kernel,
        "degree": degree,
    }


def _almost_orthogonal(row: LayerRow) -> Maker:
    return lambda out, kernel, places: {
        "kind": "aol-conv2d",
        "out": out,
        "kernel": kernel,
        "padding": kernel // 2,
    }


def _potential(kind: str) -> Callable[[LayerRow], Maker]:
    return lambda row: lambda out, kernel, places: {"kind": kind, "kernel": kernel}


def _reflector(row: LayerRow) -> Maker:
    """Windows where the map of the whole image can be deployed, else across channels alone."""
    return lambda out, kernel, places: {
        "kind": "bro-conv2d",
        "kernel": kernel if kernel**2 <= places <= LARGEST_IMAGE // out else 1,
    }


def _orthogonal(row: LayerRow) -> Maker:
    """Across channels alone: a window that overlaps its neighbour's is not orthogonal."""
    return lambda out, kernel, places: {"kind": "orthogonal-conv2d", "out": out, "kernel": 1}


#: What stands in the convolutions' places: of the request, a maker of one row for so many channels,
#: a window and the places of the image. Where neighbours never meet in a window they do in the next
#: block's channels.
LAYERS: dict[str, Callable[[LayerRow], Maker]] = {
    "aol": _almost_orthogonal,
    "bro": _reflector,
    "cholesky": _orthogonal,
    "cpl": _potential("cpl-conv2d"),
    "sll": _potential("sll-conv2d"),
    "soc": _skew,
}
#: Layers that have as many channels behind as before: zeros are appended to the pixels.
SQUARE = ("bro", "cpl", "sll")


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
    """``depth`` convolutions (5, 10, ... 40) in ``blocks`` and one before them, each a ``layer``.

    ``width`` channels to begin with; each block ends in space-to-depth, a convolution of four times
    its channels and ``pooling`` of pairs, the last one in 1 x 1 convolutions and ``head``: of
    ``crc`` behind all channels, with ``hidden`` softplus units. ``mean`` of the pixels is by
    channel, ``std`` one for all. ``degree``: of the series of ``soc``.
    """
    blocks = row.integer("blocks", 5, maximum=8)
    depth = row.integer("depth", 5, maximum=MAX_DEPTH)
    if depth % blocks:
        row.refuse(f'needs "depth", a multiple of its {blocks} blocks, not {depth}')
    width = row.integer("width", 32, minimum=2, maximum=1 << 12)
    pool = POOLS[row.choice("pooling", "max", POOLS)]
    head = row.choice("head", "lln", HEADS)
    layer = row.choice("layer", "soc", LAYERS)
    maker = LAYERS[layer](row)
    mean, std = row.get("mean", [0.5]), row.number("std", STD, 1e-3, 1e3)
    pixels = {"mean": mean, "std": [std] * len(mean) if isinstance(mean, list | tuple) else [std]}

    each, channels, places = depth // blocks, width, _places(row)
    layers: list[Row] = [{"kind": "normalize", **pixels}]
    if layer in SQUARE:
        layers.append({"kind": "pad-channels", "channels": channels})
    layers += [maker(channels, 3, places), *activation]
    for _ in range(blocks - 1):
        layers += [maker(channels, 3, places), *activation] * (each - 1)
        places //= 4
        layers += [{"kind": "space-to-depth", "block": 2}, maker(4 * channels, 3, places), pool]
        channels *= 2
    channels, places = 4 * channels, places // 4
    layers.append({"kind": "space-to-depth", "block": 2})
    layers += [maker(channels, 1, places), *activation] * (each - 1)
    layers += [maker(channels, 1, places), *(activation if head == "crc" else (pool,))]
    layers.append({"kind": "flatten"})
    return [*layers, *HEADS[head](row, row.integer("classes", 10, minimum=2))]


def _places(row: LayerRow) -> int:
    """Of the images; 0 where no shape of images is given, which is refused later."""
    shape = row.get("input", [3, 32, 32])
    if not isinstance(shape, list | tuple) or len(shape) != 3:
        return 0
    height, width = shape[1:]
    return height * width if type(height) is int and type(width) is int else 0
