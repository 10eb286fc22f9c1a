"""Which output of a graph holds the class scores; nodes that it does not need are cut away."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from onnx import GraphProto, TensorProto, ValueInfoProto

from models.errors import ModelError

__all__ = ["choose_output", "cut_away_unneeded"]

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


def choose_output(graph: GraphProto, wanted: str | None) -> str:
    """The name of the output with the scores; all others are taken out of the graph, in place.

    ``wanted``, or the only output, or of several the only one of floats, of those the only one of
    rank 2. Probabilities as a list of maps (ZipMap) count as floats; labels do not.
    Raises ModelError.
    """
    names = [value.name for value in graph.output]
    if wanted is not None:
        if wanted not in names:
            raise ModelError(
                f"the graph has no output {wanted!r}; it has {_listed(names)}",
                code="unknown_output",
                hint='name one of them in the spec: "output": "..."',
            )
        chosen = wanted
    else:
        found = list(graph.output)
        if len(found) > 1:
            found = [value for value in found if _holds_scores(value)]
        if len(found) > 1:
            found = [value for value in found if _of_rank_2(value)] or found
        if len(found) != 1:
            raise ModelError(
                f"the graph has {len(names)} outputs, and which of them holds the class scores is "
                f"unknown: {_listed(names)}",
                code="ambiguous_output",
                hint='name it in the spec: "output": "..."',
            )
        chosen = found[0].name
    for index in reversed(range(len(graph.output))):
        if graph.output[index].name != chosen:
            del graph.output[index]
    return chosen


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in list(names)[:8])


def _holds_scores(value: ValueInfoProto) -> bool:
    kind = value.type.WhichOneof("value")
    if kind == "sequence_type":
        return value.type.sequence_type.elem_type.WhichOneof("value") == "map_type"
    return kind == "tensor_type" and value.type.tensor_type.elem_type in _FLOATS


def _of_rank_2(value: ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return not tensor.HasField("shape") or len(tensor.shape.dim) == 2


def cut_away_unneeded(graph: GraphProto) -> None:
    """Take out, in place, every node that no output of the graph is computed from, every input that
    is then unused, and what the graph says of values that it no longer holds."""
    makers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in node.output:
            makers.setdefault(name, []).append(index)
    wanted = [value.name for value in graph.output]
    needed: set[str] = set()
    kept: set[int] = set()
    while wanted:
        name = wanted.pop()
        if name in needed or not name:
            continue
        needed.add(name)
        for index in makers.get(name, ()):
            kept.add(index)
            wanted.extend(graph.node[index].input)
    _delete(graph.node, lambda index: index not in kept)
    if any(value.name in needed for value in graph.input):
        _delete(graph.input, lambda index: graph.input[index].name not in needed)
    _delete(graph.initializer, lambda index: graph.initializer[index].name not in needed)
    held = needed.union(*(node.output for node in graph.node))
    _delete(graph.value_info, lambda index: graph.value_info[index].name not in held)


def _delete(rows: Any, unneeded: Callable[[int], bool]) -> None:
    for index in reversed(range(len(rows))):
        if unneeded(index):
            del rows[index]
