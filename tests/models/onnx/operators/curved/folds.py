"""Folds as files write them (HouseHolder of deel-torchlip and orthogonium), and as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper

__all__ = ["FLIPPED", "angles", "combinations", "exact_fold", "masked", "with_where"]

node = helper.make_node
KEPT, BENT = "LessOrEqual", "Greater"
FLIPPED = {"Less": "Greater", "LessOrEqual": "GreaterOrEqual", "Greater": "Less"}
FLIPPED["GreaterOrEqual"] = "LessOrEqual"


def angles(theta: Any, shape: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """What the libraries compute of their angles, as they lay it out."""
    theta = torch.as_tensor(theta, dtype=torch.float32).reshape(1, -1, *([1] * (len(shape) - 1)))
    named = {"s": torch.sin(0.5 * theta), "c": torch.cos(0.5 * theta)}
    named |= {"S": torch.sin(theta), "C": torch.cos(theta)}
    return {name: value.numpy() for name, value in named.items()} | {"zero": np.float32(0)}


def combinations() -> list[NodeProto]:
    """The halves, n . p and A p."""
    nodes = [node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2)]
    for name, first, second, operator in (
        ("sel", "s", "c", "Sub"),
        ("a2", "C", "S", "Add"),
        ("b2", "S", "C", "Sub"),
    ):
        nodes.append(node("Mul", ["a", first], [f"{name}_a"]))
        nodes.append(node("Mul", ["b", second], [f"{name}_b"]))
        nodes.append(node(operator, [f"{name}_a", f"{name}_b"], [name]))
    return nodes


def masked(kept: str = KEPT, bent: str = BENT, *, turned: bool = False) -> list[NodeProto]:
    """As both libraries write it: products with 1 and 0."""
    compared = ["zero", "sel"] if turned else ["sel", "zero"]
    kept, bent = (FLIPPED[kept], FLIPPED[bent]) if turned else (kept, bent)
    nodes = [*combinations(), node(kept, compared, ["le"]), node(bent, compared, ["gt"])]
    nodes += [node("Cast", [name], [f"{name}1"], to=TensorProto.FLOAT) for name in ("le", "gt")]
    for half in "ab":
        nodes.append(node("Mul", [half, "le1"], [f"{half}k"]))
        nodes.append(node("Mul", ["gt1", f"{half}2"], [f"{half}g"]))
        nodes.append(node("Add", [f"{half}k", f"{half}g"], [f"{half}y"]))
    return [*nodes, node("Concat", ["ay", "by"], ["y"], axis=1)]


def with_where(operator: str) -> list[NodeProto]:
    """As torch.where writes it."""
    nodes = [*combinations(), node(operator, ["sel", "zero"], ["at"])]
    for half in "ab":
        sides = [half, f"{half}2"] if operator.startswith("Less") else [f"{half}2", half]
        nodes.append(node("Where", ["at", *sides], [f"{half}y"]))
    return [*nodes, node("Concat", ["ay", "by"], ["y"], axis=1)]


def exact_fold(p: np.ndarray[Any, Any], normal: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """p - 2 n max(n . p, 0) in float64, [..., pairs, 2]."""
    p, normal = p.astype(np.float64), normal.astype(np.float64)
    beyond = np.maximum((p * normal).sum(-1, keepdims=True), 0.0)
    return p - 2.0 * normal * beyond
