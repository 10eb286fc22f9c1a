"""The answer that a file gives beside its scores, which must be the one that is certified.

What is certified is the class of the largest score, and of one score of two classes class 1 where
it is above 0 (its Sigmoid above 0.5). A file may say otherwise in an output that is not taken: the
class of the least distance, or of the largest of the distances' negatives; a label 1 where a
probability is above 0.7, or below 0.5. Such files are refused. Only what stands between the scores
and that answer number by number, and never jumps, is followed; of others nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from models.errors import ModelError

__all__ = ["refuse_other_answers"]

#: Operators that show the same numbers.
_VIEWS = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
#: Operators that keep the order of a sample's scores, those that turn it, and those that do one or
#: the other by the number that they are given.
_RISING = ("Exp", "Log", "LogSoftmax", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Tanh")
_BY_NUMBER = ("Add", "Div", "Mul", "Sub")
#: What is true above a number; what is below it.
_ABOVE, _BELOW = ("Greater", "GreaterOrEqual"), ("Less", "LessOrEqual")
#: What may stand between a comparison and the label that it makes.
_LABEL_VIEWS = (*_VIEWS, "Not")


def refuse_other_answers(graph: GraphProto, output: str, *, binary: bool) -> None:
    """Raise ModelError where the file's own answer is another than that of its scores.

    output: the scores; graph: with whatever else stands in the file. binary: the spec says that
    they are one score of two classes. Codes: ``least_score``, ``label_threshold``.
    """
    makers = _Makers(graph)
    scores = makers.followed(output)
    for node in graph.node:
        if not node.input or not node.input[0]:
            continue
        chosen = _chosen(node)
        if chosen is not None:
            way = makers.followed(node.input[0])
            if way.source == scores.source and way.sign * chosen != scores.sign:
                raise ModelError(
                    f"the file answers with the class whose score in {output!r} is the least; "
                    "here the largest one is the answer",
                    code="least_score",
                    hint="export the scores with their sign turned (-x), or, if the largest is "
                    f'meant, name the output in the spec: "output": "{output}"',
                )
    if binary or "Sigmoid" in scores.passed:
        _refuse_thresholds(graph, output, makers, scores)


def _chosen(node: NodeProto) -> int | None:
    """1 where a node says which of its numbers is the largest, -1: the least, None: another one."""
    if node.op_type in ("ArgMax", "ArgMin"):
        return 1 if node.op_type == "ArgMax" else -1
    if node.op_type == "TopK" and len(node.output) > 1 and node.output[1]:
        return -1 if any(a.name == "largest" and a.i == 0 for a in node.attribute) else 1
    return None


@dataclass(frozen=True)
class _Way:
    """source: what a value is computed from number by number; sign: -1 where it falls in that;
    passed: the operators between that do more than show the same numbers."""

    source: str
    sign: int = 1
    passed: tuple[str, ...] = ()


class _Makers:
    """What the values of a graph come from; nothing is looked up twice."""

    def __init__(self, graph: GraphProto) -> None:
        self._nodes = {name: node for node in graph.node for name in node.output if name}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._known: dict[str, _Way] = {}

    def followed(self, name: str) -> _Way:
        """The way to a value, as far as it goes."""
        names: list[tuple[str, int, str]] = []
        seen = {name}
        while name not in self._known:
            step = self._before(name)
            if step is None or step[0] in seen:
                break
            names.append((name, *step[1:]))
            name = step[0]
            seen.add(name)
        way = self._known.setdefault(name, _Way(name))
        for passed, sign, kind in reversed(names):
            more = (*way.passed, kind) if kind and len(way.passed) < 2 else way.passed
            way = self._known[passed] = _Way(way.source, way.sign * sign, more)
        return way

    def _before(self, name: str) -> tuple[str, int, str] | None:
        """(the value before, 1 or -1, the operator, "" where it shows the same numbers)."""
        node = self._nodes.get(name)
        if node is None or not node.input or not node.input[0] or name != node.output[0]:
            return None
        kind = node.op_type
        if kind in _VIEWS:
            return node.input[0], 1, ""
        if kind in _RISING:
            return node.input[0], 1, kind
        if kind == "Neg":
            return node.input[0], -1, kind
        if kind not in _BY_NUMBER or len(node.input) != 2:
            return None
        for place in range(2):
            number = self.number(node.input[place])
            if number is None:
                continue
            if kind in ("Add", "Sub"):
                return node.input[1 - place], -1 if kind == "Sub" and place == 0 else 1, kind
            if number == 0.0 or (kind == "Div" and place == 0):
                return None
            return node.input[1 - place], 1 if number > 0 else -1, kind
        return None

    def number(self, name: str) -> float | None:
        """The one number that a constant is; None: it is none, or more."""
        tensor = self._tensors.get(name)
        node = self._nodes.get(name)
        if tensor is None and node is not None and node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value_float":
                    return float(attribute.f)
                if attribute.name == "value":
                    tensor = attribute.t
        kinds = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32)
        if tensor is None or tensor.data_type not in kinds or any(d != 1 for d in tensor.dims):
            return None
        try:
            value = float(numpy_helper.to_array(tensor).reshape(())[()])
        except (TypeError, ValueError):
            return None
        return value if np.isfinite(value) else None


def _refuse_thresholds(graph: GraphProto, output: str, makers: _Makers, scores: _Way) -> None:
    """Labels of one score must begin at 0, those of its Sigmoid at 0.5, and rise with it."""
    needed = _needed(graph, output)
    labels = dict(_labels(graph))
    for node in graph.node:
        found = _compared(node, makers)
        if found is None or any(name in needed for name in node.output):
            continue
        value, threshold, above = found
        way = makers.followed(value)
        begins = {(): 0.0, ("Sigmoid",): 0.5}.get(way.passed)
        if way.source != scores.source or begins is None:
            continue
        turned = labels.get(node.output[0])
        if threshold != begins or (turned is not None and above == turned):
            where = "above" if above != bool(turned) else "below"
            raise ModelError(
                f"the file gives the label 1 where {value!r} is {where} {threshold:g}; here "
                f"class 1 is the answer where it is above {begins:g}",
                code="label_threshold",
                hint="shift the score before the export (by the logit of the threshold, or with "
                "its sign turned), or, if the plain one is meant, name the output in the spec: "
                f'"output": "{output}"',
            )


def _compared(node: NodeProto, makers: _Makers) -> tuple[str, float, bool] | None:
    """(value, number, whether it is true above) of a comparison with a number."""
    if node.op_type == "Binarizer":
        given = [attribute.f for attribute in node.attribute if attribute.name == "threshold"]
        return node.input[0], float(given[0]) if given else 0.0, True
    if node.op_type not in (*_ABOVE, *_BELOW) or len(node.input) != 2:
        return None
    above = node.op_type in _ABOVE
    for place in range(2):
        number = makers.number(node.input[1 - place])
        if number is not None:
            return node.input[place], number, above == (place == 0)
    return None


def _labels(graph: GraphProto) -> Iterator[tuple[str, bool]]:
    """Values that some end of the graph shows as they are, and whether it turns them (Not)."""
    read = {name for node in graph.node for name in node.input}
    makers = {name: node for node in graph.node for name in node.output if name}
    for end in [name for name in makers if name not in read]:
        name, turned = end, False
        seen = set[str]()
        while name in makers and name not in seen:
            yield name, turned
            seen.add(name)
            node = makers[name]
            if node.op_type not in _LABEL_VIEWS or not node.input:
                break
            turned ^= node.op_type == "Not"
            name = node.input[0]


def _needed(graph: GraphProto, output: str) -> set[str]:
    """The values that the scores are computed from, themselves included."""
    makers = {name: node for node in graph.node for name in node.output if name}
    needed, wanted = set[str](), [output]
    while wanted:
        name = wanted.pop()
        if name and name not in needed:
            needed.add(name)
            wanted.extend(makers[name].input if name in makers else ())
    return needed
