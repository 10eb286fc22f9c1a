"""A file as it was sent, brought to the one form that is certified and deployed.

One input, one output with the logits, no node beside those that lead from one to the other. What is
cut off or added is said in ``PlainForm``; a plain form is its own plain form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from models.errors import ModelError
from models.onnx.declarations import Declaration, declared_values
from models.onnx.forms.answers import refuse_other_answers
from models.onnx.forms.class_numbers import (
    number_by_place,
    refuse_other_numbers,
)
from models.onnx.forms.endings import (
    Ending,
    cut_ending,
    cut_sigmoid,
    end_in,
    ends_in_sigmoid,
    of_layers,
)
from models.onnx.forms.inputs import take_floats
from models.onnx.forms.outputs import choose_output, cut_away_unneeded
from models.onnx.safety import OnnxLimits, check_graph, opset_of, parse_onnx

__all__ = ["Asked", "PlainForm", "plain_form"]


@dataclass(frozen=True)
class Asked:
    """What a spec says of the file: the name of the output with the scores, and whether that is one
    score of two classes.

    classifier: False where a property is asked about: then one output is as good as several, and
    the end is left as it is, where it is made of layers: a Softmax, a Sigmoid.
    """

    output: str | None = None
    binary: bool = False
    classifier: bool = True


@dataclass(frozen=True)
class PlainForm:
    """The graph that is certified, and what it lost.

    declared: types that the file declares of its values. nodes: those cut off whose axis must be
    that of the classes, and casts of the number of the class; pair: the one that joined 1 - p and p
    of one score; alike: values cut off that are as the logits are. dropped: operators cut off the
    end, in the order of the graph. score: the value that is the one score of two classes. output:
    the file's output that was taken, beside the ``others``. takes_bytes: whether the file takes
    uint8; the plain form takes the same numbers as floats.
    """

    model: ModelProto
    declared: Sequence[Declaration]
    nodes: Sequence[NodeProto]
    pair: NodeProto | None
    alike: Sequence[str]
    dropped: str | None
    score: str | None
    output: str
    others: tuple[str, ...]
    takes_bytes: bool = False

    @property
    def graph(self) -> GraphProto:
        """The plain graph."""
        return self.model.graph

    @property
    def opset(self) -> int:
        """Its opset of the default domain."""
        return opset_of(self.model)

    @property
    def ends_in_sigmoid(self) -> bool:
        """Whether a Sigmoid gives its output, or what is written in its place."""
        return ends_in_sigmoid(self.graph)


def plain_form(
    data: bytes,
    limits: OnnxLimits | None = None,
    asked: Asked | None = None,
    *,
    whole: bool = False,
) -> PlainForm:
    """The plain form of an ONNX file's bytes; no other file is ever opened. Raises ModelError.

    whole: the file is a plain form already, and its end stays: a Softmax there is a layer.
    """
    asked = asked or Asked()
    model = parse_onnx(data, limits)
    graph = model.graph
    names = [value.name for value in graph.output]
    output = choose_output(graph, asked.output)
    if asked.classifier:
        refuse_other_numbers(graph, output, named=asked.output is not None)
    if asked.classifier and asked.output is None:
        refuse_other_answers(graph, output, binary=asked.binary)
    cut_away_unneeded(graph)
    number_by_place(graph)
    takes_bytes = take_floats(graph)
    declared = declared_values(graph)
    whole = whole or (not asked.classifier and of_layers(graph))
    ending = Ending() if whole else cut_ending(graph)
    if ending.pair is not None or asked.binary:
        if ending.pair is None and ending.dropped:
            # Over one score each of them says the same whatever the score is.
            raise ModelError(
                f"a binary classifier ends in one score or its Sigmoid, not in {_joined(ending)}",
                code="invalid_network",
                hint='leave "binary" out of the spec, or export the score',
            )
        if ending.pair is None and cut_sigmoid(graph):
            ending.dropped.append("Sigmoid")
        score = _two_logits(graph)
    else:
        score = None
    cut_away_unneeded(graph)
    check_graph(model)
    return PlainForm(
        model=model,
        declared=declared,
        nodes=ending.nodes,
        pair=ending.pair,
        alike=ending.alike,
        dropped=_joined(ending),
        score=score,
        output=output,
        others=tuple(name for name in names if name != output),
        takes_bytes=takes_bytes,
    )


def _joined(ending: Ending) -> str | None:
    return " and ".join(ending.dropped) or None


def _two_logits(graph: GraphProto) -> str:
    """Let the graph end in the logits (0, z) of its one score z, in place; the name of z."""
    score = graph.output[0].name
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {row.name for rows in (graph.input, graph.initializer) for row in rows}
    taken |= {node.name for node in graph.node}
    prefix = "binary"
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"
    column, shape, factors, logits = (
        f"{prefix}.{part}" for part in ("column", "shape", "factors", "logits")
    )
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([-1, 1], np.int64), shape),
            numpy_helper.from_array(np.array([[0, 1]], np.float32), factors),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Reshape", [score, shape], [column]),
            # One product each: 0 and z, exactly.
            helper.make_node("MatMul", [column, factors], [logits]),
        ]
    )
    end_in(graph, logits)
    return score
