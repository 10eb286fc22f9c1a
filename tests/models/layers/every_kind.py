"""A layer of every kind that a list may name, in miniature, its row made from the tables."""

from __future__ import annotations

from typing import Any

from models.architectures.layer_makers import KINDS
from models.architectures.layer_rows import LayerRow
from models.errors import ModelError
from models.layers.base import Layer, Shape
from service.contract.catalogue.layer_kinds import JOINING, LAYER_KINDS

__all__ = ["CLASSES", "IMAGE", "layer_of", "layers_with", "row_of"]

#: What goes into the networks, and what they tell apart.
IMAGE, CLASSES = (8, 4, 4), 4
#: Inputs that a layer may take: images, or features.
SHAPES: tuple[Shape, ...] = (IMAGE, (8,))
#: Of a member that has no default, by its form, and by its name where the form says too little.
FORMS: dict[str, Any] = {"integer": 8, "sizes": 2, "numbers": [0.5]}
NAMES: dict[str, Any] = {"axes": [1], "channels": 12}
#: Of which one of two members is needed, or whose defaults leave nothing of an input.
GIVEN: dict[str, dict[str, Any]] = {
    "at-least": {"value": -0.3},
    "at-most": {"value": 0.4},
    "clip": {"low": -0.4},
}


def row_of(kind: str) -> dict[str, Any]:
    """The row, with the members that it needs."""
    needed = {name: member for name, member in LAYER_KINDS[kind].items() if member.required}
    values = {name: NAMES.get(name, FORMS.get(row.form)) for name, row in needed.items()}
    return {"kind": kind, **values, **GIVEN.get(kind, {})}


def layer_of(kind: str) -> tuple[Layer, Shape]:
    """The layer without weights, and the first of ``SHAPES`` that it takes. Raises ModelError."""
    for shape in SHAPES:
        try:
            return KINDS[kind](LayerRow(0, row_of(kind)), shape), shape
        except ModelError:
            if shape is SHAPES[-1]:
                raise
    raise AssertionError


def layers_with(kind: str) -> list[dict[str, Any]]:
    """A list for images in which the layer stands between a rotation of the channels and a head of
    unit rows; a dense one with any number of outputs is the head, too."""
    row, (_, shape) = row_of(kind), layer_of(kind)
    rows: list[dict[str, Any]] = [{"kind": "orthogonal-conv2d", "out": 8, "kernel": 1}]
    flatten, head = {"kind": "flatten"}, {"kind": "normalized-head", "out": CLASSES}
    if kind in JOINING:
        return [*rows, {**row, "from": "input"}, flatten, head]
    if shape == IMAGE:
        return [*rows, row, *([] if kind == "flatten" else [flatten]), head]
    if "out" in row:
        head = {**row, "out": CLASSES}
    return [*rows, flatten, row, {"kind": "maxmin"}, head]
