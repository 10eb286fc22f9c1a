"""The numbers by which a file calls its classes, which must be the places of their scores.

A label of a data set is the place of a score: 0, 1, ... A classifier of scikit-learn that was
trained with the labels 1, 2, 3 says so in its file: in its list of maps (ZipMap), in its labels
(LinearClassifier), or in the table that an ArgMax looks them up in. There the label 1 means the
first score, and a certificate of the second one would be about another answer. Classes with names
are in the order of the scores: no number says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from models.errors import ModelError
from models.onnx.safety import parse_onnx

__all__ = ["class_names", "number_by_place", "refuse_other_numbers"]

#: Attributes that list the classes, by operator.
_LISTS = {
    "LinearClassifier": ("classlabels_ints", "classlabels_strings"),
    "ZipMap": ("classlabels_int64s", "classlabels_strings"),
}
#: What looks a class up in a table, and what may stand between it and the ArgMax.
_TABLES = ("ArrayFeatureExtractor", "Gather")
_BETWEEN = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_NUMBERS = (TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64)
_NUMERAL = re.compile(rb"[+-]?[0-9]{1,18}")
#: Numbers that a message lists.
_LISTED = 8


def refuse_other_numbers(graph: GraphProto, output: str, *, named: bool) -> None:
    """Raise ModelError (class_numbers) where the file calls its classes by other numbers than 0, 1,
    ... in the order of the scores.

    ``output``: where the scores are taken; ``graph``: with whatever else stands in the file.
    named: the spec names that output, so that a class is a place in it, whatever the file's labels
    are; then only the numbers of its own maps count.
    """
    for node, numbers in _stated(graph):
        if named and not (node.op_type == "ZipMap" and output in node.output):
            continue
        if not np.array_equal(numbers, np.arange(len(numbers))):
            said = ", ".join(map(str, numbers[:_LISTED])) + (", ..." if numbers[_LISTED:] else "")
            raise ModelError(
                f"the file calls its classes {said}, in the order of their scores; labels here are "
                f"the places of the scores, 0 to {len(numbers) - 1}",
                code="class_numbers",
                hint="number the classes from 0 when training (scikit-learn: LabelEncoder), or "
                "number the data set's labels by place, export without ZipMap (skl2onnx: "
                'options={"zipmap": False}) and name the output with the scores in the spec: '
                '"output": "probabilities"',
            )


def class_names(data: bytes, classes: int) -> tuple[str, ...] | None:
    """What an ONNX file of this many classes calls them, in the order of their scores; None where
    it does not say, says it in two ways, or by numbers that are no text. That they are those of the
    scores that are certified is shown by ``file_labels``, on samples, where labels are given."""
    if not any(kind.encode() in data for kind in (*_LISTS, *_TABLES)):
        return None
    graph = parse_onnx(data).graph
    sources, found = _Sources(graph), set[tuple[bytes, ...]]()
    for node in graph.node:
        if node.op_type in _LISTS:
            found |= {
                tuple(attribute.strings)
                for attribute in node.attribute
                if attribute.name in _LISTS[node.op_type] and attribute.strings
            }
        elif node.op_type in _TABLES and len(node.input) == 2 and sources.is_argmax(node.input[1]):
            table = sources.constant(sources.before(node.input[0]))
            if table is not None and table.data_type == TensorProto.STRING:
                found.add(tuple(table.string_data))
    names = [tuple(name.decode("utf-8", "replace") for name in row) for row in found]
    if len(names) != 1 or len(names[0]) != classes or len(set(names[0])) < classes:
        return None
    return names[0]


def number_by_place(graph: GraphProto) -> None:
    """Let the LinearClassifiers of a graph whose scores alone are read call classes by place."""
    for node, numbers in _stated(graph):
        places = list(range(len(numbers)))
        for attribute in node.attribute if node.op_type == "LinearClassifier" else ():
            if attribute.name == "classlabels_ints":
                attribute.ints[:] = places
            elif attribute.name == "classlabels_strings":
                attribute.strings[:] = [str(place).encode() for place in places]


def _stated(graph: GraphProto) -> Iterator[tuple[NodeProto, Sequence[int]]]:
    """Each node that says how classes are called, where it calls them by numbers; of nodes that
    share a table the first one."""
    sources, seen = _Sources(graph), set[str]()
    for node in graph.node:
        found: Sequence[int] | None = None
        if node.op_type in _LISTS:
            found = _listed(node)
        elif node.op_type in _TABLES and len(node.input) == 2 and sources.is_argmax(node.input[1]):
            table = sources.before(node.input[0])
            found = None if table in seen else _numbers(sources.constant(table))
            seen.add(table)
        if found:
            yield node, found


class _Sources:
    """What the values of a graph come from; nothing is looked up twice."""

    def __init__(self, graph: GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._known: dict[str, str] = {}

    def before(self, name: str) -> str:
        """The value that is only cast, viewed or called otherwise until it is this one."""
        passed: dict[str, None] = {}
        while name not in passed and name not in self._known:
            node = self._makers.get(name)
            if node is None or node.op_type not in _BETWEEN or not node.input:
                break
            passed[name] = None
            name = node.input[0]
        name = self._known.get(name, name)
        self._known.update(dict.fromkeys(passed, name))
        return name

    def is_argmax(self, name: str) -> bool:
        """Whether a value is the number that an ArgMax gives."""
        node = self._makers.get(self.before(name))
        return node is not None and node.op_type == "ArgMax"

    def constant(self, name: str) -> TensorProto | None:
        """The constant of this name."""
        if name in self._tensors:
            return self._tensors[name]
        node = self._makers.get(name)
        if node is None or node.op_type != "Constant":
            return None
        for attribute in node.attribute:
            if attribute.name == "value":
                return attribute.t
            if attribute.name == "value_ints":
                return numpy_helper.from_array(np.array(attribute.ints, np.int64))
        return None


def _listed(node: NodeProto) -> list[int] | None:
    for attribute in node.attribute:
        if attribute.name in _LISTS[node.op_type] and attribute.ints:
            return list(attribute.ints)
        if attribute.name in _LISTS[node.op_type] and attribute.strings:
            words = list(attribute.strings)
            numerals = all(_NUMERAL.fullmatch(word) for word in words)
            return [int(word) for word in words] if numerals else None
    return None


def _numbers(tensor: TensorProto | None) -> list[int] | None:
    """The whole numbers of a table; None where it holds others, or is none."""
    if tensor is None or tensor.data_type not in _NUMBERS:
        return None
    try:
        values = numpy_helper.to_array(tensor).reshape(-1)
    except (TypeError, ValueError):
        return None
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64)
    return whole.tolist() if bool((whole == values).all()) else None
