"""The end of an ONNX graph: a Softmax or LogSoftmax there is cut off, so that the output is logits.

Neither changes the order of logits that differ by more than its own rounding (the verifier requires
that). Margins, radii and the comparison with ONNX Runtime are then in units of the logits.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from onnx import GraphProto, NodeProto

from models.layers.kinds import Shape
from models.onnx.graph import Operation

__all__ = ["FINAL_OPERATORS", "FinalOperator", "cut_final_operator", "refuse_other_axes"]

#: Operators that are taken at the very end only, and left out there.
FINAL_OPERATORS = ("LogSoftmax", "Softmax")


@dataclass(frozen=True)
class FinalOperator:
    """The operator that was cut off, and the names of the values that went with it."""

    node: NodeProto
    names: tuple[str, ...]


def cut_final_operator(graph: GraphProto) -> FinalOperator | None:
    """Take a final Softmax or LogSoftmax (and Identity after it) out of the graph, in place.

    The graph's output is then its input. None, and nothing is changed, where there is none or
    where its output is used for anything else.
    """
    if len(graph.output) != 1:
        return None
    uses = Counter(source for node in graph.node for source in node.input)
    makers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for output in node.output:
            makers.setdefault(output, []).append(index)
    cut: list[int] = []
    names: list[str] = []
    name = graph.output[0].name
    while True:
        indices = makers.get(name, [])
        node = graph.node[indices[0]] if len(indices) == 1 else None
        expected_uses = 1 if cut else 0
        if node is None or uses[name] != expected_uses:
            return None
        if len(node.input) != 1 or len(node.output) != 1:
            return None
        names.append(name)
        cut.append(indices[0])
        if node.op_type in FINAL_OPERATORS:
            break
        if node.op_type != "Identity" or len(cut) > len(graph.node):
            return None
        name = node.input[0]
    final = FinalOperator(NodeProto.FromString(node.SerializeToString()), tuple(names))
    logits = node.input[0]
    for index in sorted(cut, reverse=True):
        del graph.node[index]
    graph.output[0].name = logits
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name == logits:
            del graph.value_info[index]
    return final


def refuse_other_axes(operation: Operation, shape: Shape) -> None:
    """The operator must run over all the logits of a sample (of this shape) and nothing else."""
    axis = operation.axis(operation.attributes["axis"], len(shape) + 1)
    # Up to opset 12 it runs over this axis and all that follow.
    covered = shape[axis - 1 :] if operation.opset < 13 else shape[axis - 1 : axis]
    if axis == 0:
        operation.refuse_batch("its axis is the batch axis")
    if math.prod(covered) != math.prod(shape):
        operation.refuse(
            f"axis {axis} of [batch, {', '.join(map(str, shape))}] is not the axis of the classes",
            hint="export the logits, before any softmax",
        )
