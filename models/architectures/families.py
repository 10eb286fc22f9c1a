"""Architectures with a depth and a width: a function from a few numbers to a layer list each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from models.architectures.layer_rows import MAX_SIZE, LayerRow
from models.architectures.lipconvnet import lipconvnet
from models.errors import ModelError

__all__ = ["DENSE_HEADS", "FAMILIES", "family_layers"]

Row = Mapping[str, Any]
#: Last layers of ``orthogonal-dense``.
DENSE_HEADS = {"linear": "linear", "lln": "normalized-head"}
_CENTRED: Row = {"kind": "normalize", "mean": [0.5], "std": [1.0]}


def _orthogonal_dense(row: LayerRow, activation: Sequence[Row]) -> list[Row]:
    """Dense layers with orthonormal rows or columns: the Lipschitz constant is that of the head.

    ``head``: any dense layer, or one with unit rows (``lln``).
    """
    layers: list[Row] = [{"kind": "flatten"}]
    for width in _widths(row):
        layers += [{"kind": "orthogonal-linear", "out": width}, *activation]
    kind = DENSE_HEADS[row.choice("head", "linear", DENSE_HEADS)]
    return [*layers, {"kind": kind, "out": row.integer("classes", 10, minimum=2)}]


def _liresnet(row: LayerRow, activation: Sequence[Row]) -> list[Row]:
    """LiResNet (Hu et al. 2023, 2024): stem, residual convolutions, orthogonal neck and dense part.

    Stem 5x5 stride 2, ``depth`` convolutions 3x3 with kernel I + K, neck 4x4 stride 4 and a dense
    layer of ``dense_width``, ``dense_depth`` residual dense layers, unit rows in the last layer.
    """
    depth, width = row.integer("depth", 12, maximum=MAX_DEPTH), row.integer("width", 512)
    dense = row.integer("dense_width", 2048)
    dense_depth = row.integer("dense_depth", 8, minimum=0, maximum=MAX_DEPTH)
    scale = 1.0 / math.sqrt(depth)
    layers: list[Row] = [_CENTRED]
    layers += [{"kind": "conv2d", "out": width, "kernel": 5, "stride": 2, "padding": 2}]
    layers += activation
    for _ in range(depth):
        layers += [{"kind": "residual-conv2d", "kernel": 3, "scale": scale}, *activation]
    layers += [{"kind": "orthogonal-conv2d", "out": width, "kernel": 4}, *activation]
    layers.append({"kind": "flatten"})
    layers += [{"kind": "orthogonal-linear", "out": dense}, *activation]
    dense_scale = 1.0 / math.sqrt(max(dense_depth, 1))
    for _ in range(dense_depth):
        layers += [{"kind": "residual-orthogonal-linear", "scale": dense_scale}, *activation]
    classes = row.integer("classes", 10, minimum=2)
    return [*layers, {"kind": "normalized-linear", "out": classes}]


def _shiftnet(row: LayerRow, activation: Sequence[Row]) -> list[Row]:
    """Orthogonal matrices across channels, |.| and shifts (after LipNeXt 2026), no convolution.

    Space-to-depth of ``patch`` and zeros make ``width`` channels; before every further stage
    space-to-depth of 2 makes four times as many. ``depths``: orthogonal layers of each stage.
    ``mean``: what is subtracted from the pixels. Activations are |.|, whatever is asked for.
    """
    depths = row.get("depths", [4, 6, 6])
    if not isinstance(depths, list | tuple) or not 1 <= len(depths) <= 8:
        row.refuse('needs "depths", a list of 1 to 8 integers')
    if any(type(depth) is not int or not 1 <= depth <= MAX_SIZE for depth in depths):
        row.refuse(f'needs "depths", integers from 1 to {MAX_SIZE}')
    width = row.integer("width", 32, maximum=1 << 12)
    layers: list[Row] = [
        {"kind": "normalize", "mean": row.get("mean", [0.5]), "std": [1.0]},
        {"kind": "space-to-depth", "block": row.integer("patch", 2, maximum=64)},
        {"kind": "pad-channels", "channels": width},
    ]
    for stage, depth in enumerate(depths):
        if stage:
            layers.append({"kind": "space-to-depth", "block": 2})
        layers += [{"kind": "orthogonal-channels"}, {"kind": "abs-shift"}] * depth
    layers.append({"kind": "flatten"})
    return [*layers, {"kind": "normalized-head", "out": row.integer("classes", 10, minimum=2)}]


def _cap_resnet(row: LayerRow, activation: Sequence[Row]) -> list[Row]:
    """The residual network of CAP (Wong et al. 2018), as its published code has it.

    Stem of 16 channels, then blocks of 16, 32 and 64 times ``width``: one and ``blocks`` of the
    first, ``blocks`` of the others, the first of which halves the image by a kernel of 4 (in the
    shortcut of 2); a dense layer of 1000. No batch norm. ``mean``, ``std``: of the pixels; default
    for three channels that of the published runs, 0.225 in all of them, so that balls stay balls.
    """
    shape = row.get("input", [3, 32, 32])
    coloured = isinstance(shape, list | tuple) and list(shape[:1]) == [3]
    mean = row.get("mean", [0.485, 0.456, 0.406] if coloured else [0.0])
    std = row.get("std", [0.225] * 3 if coloured else [1.0])
    blocks = row.integer("blocks", 1, maximum=MAX_DEPTH)
    width = row.integer("width", 1, maximum=64)

    def named(name: str) -> list[Row]:
        return [*activation[:-1], {**activation[-1], "name": name}]

    layers: list[Row] = [{"kind": "normalize", "mean": mean, "std": std}]
    layers += [{"kind": "conv2d", "out": 16, "kernel": 3, "padding": 1}, *named("block0")]
    count = 0
    for channels, number in ((16, blocks + 1), (32, blocks), (64, blocks)):
        for place in range(number):
            halved = channels > 16 and place == 0
            stride, out = 2 if halved else 1, channels * width
            size = {"out": out, "stride": stride}
            layers += [{"kind": "conv2d", **size, "kernel": 4 if halved else 3, "padding": 1}]
            layers += activation
            inner = {"kind": "conv2d", "out": out, "kernel": 3, "padding": 1}
            layers.append({**inner, "name": f"inner{count}"})
            layers += [{"kind": "conv2d", **size, "kernel": stride, "from": f"block{count}"}]
            layers += [{"kind": "add", "from": f"inner{count}"}, *named(f"block{count + 1}")]
            count += 1
    layers += [{"kind": "flatten"}, {"kind": "linear", "out": 1000}, *activation]
    return [*layers, {"kind": "linear", "out": row.integer("classes", 10, minimum=2)}]


#: Largest number of layers of one kind in a family member.
MAX_DEPTH = 200

#: A further family is one function and one row here.
FAMILIES: dict[str, Callable[[LayerRow, Sequence[Row]], list[Row]]] = {
    "cap-resnet": _cap_resnet,
    "lipconvnet": lipconvnet,
    "liresnet": _liresnet,
    "orthogonal-dense": _orthogonal_dense,
    "shiftnet": _shiftnet,
}
#: How weights begin, where not as usual (``models.architectures.initial_values``).
_INITS = {"cap-resnet": "he"}


def family_layers(description: Mapping[str, Any], activation: Sequence[Row]) -> dict[str, Any]:
    """The layer list of ``{"name": ..., "input": [c, h, w], "classes": ..., sizes}``.

    Raises ModelError (unknown_architecture, invalid_architecture).
    """
    name = description.get("name")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise ModelError(
            f"{str(name)[:60]!r} is not a known family of architectures",
            code="unknown_architecture",
            hint="known: " + ", ".join(FAMILIES),
        )
    row = LayerRow(0, {**description, "kind": name})
    shape = row.get("input", [3, 32, 32])
    layers = family(row, activation)
    row.finish()
    return {"input": shape, "layers": layers, "init": _INITS.get(str(name), "default")}


def _widths(row: LayerRow) -> list[int]:
    widths = row.get("widths", [1024, 1024, 512])
    if not isinstance(widths, list | tuple) or not 1 <= len(widths) <= MAX_DEPTH:
        row.refuse(f'needs "widths", a list of 1 to {MAX_DEPTH} integers')
    if any(type(width) is not int or not 1 <= width <= 1 << 16 for width in widths):
        row.refuse('needs "widths", positive integers')
    return list(widths)
