"""The answer that a file gives beside its scores, which must be the one that is certified.

What is certified is the class of the largest score, and of one score of two classes class 1 where
it is above 0 (its Sigmoid above 0.5). A file may say otherwise in an output that is not taken: the
class of the least distance, or of the largest of the distances' negatives; a label 1 where a
probability is above 0.7, or below 0.5. Such files are refused. Only what stands between the scores
and that answer number by number, and never jumps (but for a cast of one score to integers), is
followed; of others nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from models.errors import ModelError

__all__ = ["refuse_other_answers"]

#: Operators that show the same numbers.
_VIEWS = (
    *("Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
)
#: Those that do so where they have one input.
_OF_ONE = ("Max", "Mean", "Min", "Sum")
#: Operators that keep the order of a sample's scores, those that turn it, and those that do one or
#: the other by the number that they are given.
_RISING = ("Exp", "Log", "LogSoftmax", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Tanh")
_BY_NUMBER = ("Add", "Div", "Mul", "Sub")
#: The numbers that elementwise operators give, and those that take a number as well.
_VALUES: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Bool": lambda x: (x != 0).astype(float),
    "Div": np.divide,
    "Exp": np.exp,
    "Integer": np.trunc,
    "Log": np.log,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "Softplus": lambda x: np.logaddexp(0.0, x),
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
    "Tanh": np.tanh,
}
#: Numbers at which a label is compared with the class of its score.
_SIZES = 10.0 ** np.linspace(-4.0, 2.0, 121)
_TRIED = np.concatenate([-_SIZES[::-1], _SIZES])
#: Labels and classes are not compared so near to where the class changes.
_NEAR = 1e-6
#: Operators between a source and a value that are evaluated, and entries of a constant, at most.
_MOST_STEPS, _MOST_ENTRIES = 64, 1 << 16
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_INTEGERS = (
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
)
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
    # Of 1 - p and p class 1 is where the second one is above 0.5.
    second = makers.second_of_pair(output)
    if second is not None:
        _refuse_thresholds(graph, output, makers, makers.followed(second), pair=True)
    elif binary or "Sigmoid" in scores.passed:
        _refuse_thresholds(graph, output, makers, scores)
    if binary and second is None:
        _refuse_one_answer(output, scores)


def _refuse_one_answer(output: str, scores: _Way) -> None:
    """A score that is a probability times 100, or an exponential, is never below 0."""
    values = scores.at(_TRIED)
    if values is None or (scores.last is not None and scores.last[1].kind == "Sigmoid"):
        return
    known = values[np.isfinite(values)]
    never = "below" if (known >= 0.0).all() else "above" if (known <= 0.0).all() else None
    if never is not None:
        raise ModelError(
            f"the score in {output!r} is never {never} 0, so that class "
            f"{int(never == 'below')} would be the answer for every input",
            code="invalid_network",
            hint="export the score before it became a probability, or its plain Sigmoid; or, if "
            f'this is meant, name the output in the spec: "output": "{output}"',
        )


def _chosen(node: NodeProto) -> int | None:
    """1 where a node says which of its numbers is the largest, -1: the least, None: another one."""
    if node.op_type in ("ArgMax", "ArgMin"):
        return 1 if node.op_type == "ArgMax" else -1
    if node.op_type == "TopK" and len(node.output) > 1 and node.output[1]:
        return -1 if any(a.name == "largest" and a.i == 0 for a in node.attribute) else 1
    return None


@dataclass(frozen=True)
class _Step:
    """kind: an operator, "" where it shows the same numbers; number: what it takes beside, if
    anything; first: whether that is its first input. sign: -1 where it falls."""

    kind: str
    sign: int = 1
    number: float | None = None
    first: bool = False

    def ordered(self, x: NDArray[np.float64]) -> tuple[Any, Any]:
        """Its two inputs."""
        return (self.number, x) if self.first else (x, self.number)


@dataclass(frozen=True)
class _Way:
    """source: what a value is computed from number by number; sign: -1 where it falls in that;
    passed: the operators between that do more than show the same numbers, the first two; last: the
    last one, and the way before it."""

    source: str
    sign: int = 1
    passed: tuple[str, ...] = ()
    last: tuple[_Way, _Step] | None = None

    def at(self, x: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """The value where the source is x; None where it is not known number by number."""
        steps, way = list[_Step](), self
        while way.last is not None and len(steps) < _MOST_STEPS:
            steps.append(way.last[1])
            way = way.last[0]
        if way.last is not None or any(step.kind not in _VALUES for step in steps):
            return None
        with np.errstate(all="ignore"):
            for step in reversed(steps):
                x = _VALUES[step.kind](*((x,) if step.number is None else step.ordered(x)))
        return x


class _Makers:
    """What the values of a graph come from; nothing is looked up twice."""

    def __init__(self, graph: GraphProto) -> None:
        self._nodes = {name: node for node in graph.node for name in node.output if name}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._known: dict[str, _Way] = {}

    def followed(self, name: str) -> _Way:
        """The way to a value, as far as it goes."""
        names: list[tuple[str, _Step]] = []
        seen = {name}
        while name not in self._known:
            found = self._before(name)
            if found is None or found[0] in seen:
                break
            names.append((name, found[1]))
            name = found[0]
            seen.add(name)
        way = self._known.setdefault(name, _Way(name))
        for passed, step in reversed(names):
            if step.kind:
                more = (*way.passed, step.kind) if len(way.passed) < 2 else way.passed
                way = _Way(way.source, way.sign * step.sign, more, (way, step))
            self._known[passed] = way
        return way

    def second_of_pair(self, name: str) -> str | None:
        """The second one of p and 1 - p, in whichever order the value joins them; None: it is
        another value."""
        seen = set[str]()
        while (node := self._nodes.get(name)) is not None and name not in seen:
            seen.add(name)
            if node.op_type == "Concat" and len(node.input) == 2:
                first, second = node.input
                pairs = ((first, second), (second, first))
                return second if any(self._is_rest(*pair) for pair in pairs) else None
            if node.op_type not in _VIEWS or node.op_type == "Cast" or not node.input:
                return None
            name = node.input[0]
        return None

    def _is_rest(self, name: str, of: str) -> bool:
        """Whether a value is 1 less another one."""
        node = self._nodes.get(name)
        if node is None or node.op_type != "Sub" or len(node.input) != 2:
            return False
        return bool(node.input[1] == of and self.number(node.input[0]) == 1.0)

    def _before(self, name: str) -> tuple[str, _Step] | None:
        """The value before, and what is done to it."""
        node = self._nodes.get(name)
        if node is None or not node.input or not node.input[0] or name != node.output[0]:
            return None
        kind = node.op_type
        if kind == "Cast":
            return node.input[0], _Step(_cast(node))
        if kind in _VIEWS or (kind in _OF_ONE and len(node.input) == 1):
            return node.input[0], _Step("")
        if kind in _RISING:
            return node.input[0], _Step(kind)
        if kind == "Neg":
            return node.input[0], _Step(kind, -1)
        if kind not in _BY_NUMBER or len(node.input) != 2:
            return None
        for place in range(2):
            number = self.number(node.input[place])
            if number is None:
                continue
            first, other = place == 0, node.input[1 - place]
            if kind in ("Add", "Sub"):
                sign = -1 if kind == "Sub" and first else 1
                return other, _Step(kind, sign, number, first)
            if number == 0.0 or (kind == "Div" and first):
                return None
            return other, _Step(kind, 1 if number > 0 else -1, number, first)
        return None

    def number(self, name: str) -> float | None:
        """The one number that all entries of a constant are; None: it is none, or more."""
        tensor = self._tensors.get(name)
        node = self._nodes.get(name)
        if tensor is None and node is not None and node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value_float":
                    return float(attribute.f)
                if attribute.name == "value":
                    tensor = attribute.t
        kinds = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32)
        if tensor is None or tensor.data_type not in kinds:
            return None
        if not 0 < math.prod(tensor.dims) <= _MOST_ENTRIES:
            return None
        try:
            entries = numpy_helper.to_array(tensor).reshape(-1)
        except (TypeError, ValueError):
            return None
        value = float(entries[0])
        return value if np.isfinite(value) and (entries == entries[0]).all() else None


def _cast(node: NodeProto) -> str:
    """What a Cast does to numbers."""
    to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)
    if to in _FLOATS:
        return ""
    if to == TensorProto.BOOL:
        return "Bool"
    return "Integer" if to in _INTEGERS else "Cast"


def _refuse_thresholds(
    graph: GraphProto, output: str, makers: _Makers, scores: _Way, *, pair: bool = False
) -> None:
    """Labels of one score must begin at 0, those of its Sigmoid at 0.5, and rise with it. pair:
    ``scores`` is the second of two numbers whose sum is 1."""
    needed = _needed(graph, output)
    labels = _labels(graph, makers)
    for node in graph.node:
        found = _compared(node, makers) if node.input and node.output else None
        if found is None or any(name in needed for name in node.output):
            continue
        value, threshold, above = found
        way = makers.followed(value)
        begins = {(): 0.0, ("Sigmoid",): 0.5}.get(way.passed)
        if pair and scores.passed != ("Sigmoid",):
            begins = None
        turned = labels.get(node.output[0])
        if way.source != scores.source:
            continue
        if begins is None:
            if _differs(scores, way, threshold, above=above, turned=turned, pair=pair):
                raise ModelError(
                    f"the file gives the label 1 by comparing {value!r} with {threshold:g}, "
                    "elsewhere than where the score is above 0; here class 1 is the answer there",
                    code="label_threshold",
                    hint="shift the score before the export, so that its label begins at 0, or, if "
                    f'the plain one is meant, name the output in the spec: "output": "{output}"',
                )
            continue
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


def _differs(
    scores: _Way,
    compared: _Way,
    threshold: float,
    *,
    above: bool,
    turned: bool | None,
    pair: bool,
) -> bool:
    """Whether a label differs from the class of its score at some number tried; turned: whether the
    file shows it so, None: it does not say."""
    score, value = scores.at(_TRIED), compared.at(_TRIED)
    if score is None or value is None:
        return False
    sigmoid = scores.last is not None and scores.last[1].kind == "Sigmoid"
    begins = 0.5 if pair or sigmoid else 0.0
    with np.errstate(invalid="ignore"):
        known = np.isfinite(score) & np.isfinite(value) & (np.abs(score - begins) > _NEAR)
        label = (value > threshold) if above else (value < threshold)
        wrong = [(label ^ way != (score > begins)) & known for way in (False, True)]
    if turned is None:
        return bool(wrong[0].any() and wrong[1].any())
    return bool(wrong[int(turned)].any())


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


def _labels(graph: GraphProto, numbers: _Makers) -> dict[str, bool]:
    """Values that some end of the graph shows as they are, and whether it turns them (Not, 1 - x, a
    choice of 0 where they are true)."""
    read = {name for node in graph.node for name in node.input}
    makers = {name: node for node in graph.node for name in node.output if name}
    found: dict[str, bool] = {}
    for end in [name for name in makers if name not in read]:
        name, turned = end, False
        while name in makers and name not in found:
            found[name] = turned
            node = makers[name]
            first = numbers.number(node.input[0]) if node.op_type == "Sub" else None
            ends = [numbers.number(name) for name in node.input[1:]]
            if node.op_type == "Where" and len(ends) == 2 and {*ends} == {0.0, 1.0}:
                turned ^= ends[0] == 0.0
                name = node.input[0]
            elif first == 1.0 and len(node.input) == 2:
                turned, name = not turned, node.input[1]
            elif node.op_type in _LABEL_VIEWS and node.input:
                turned ^= node.op_type == "Not"
                name = node.input[0]
            else:
                break
    return found


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
