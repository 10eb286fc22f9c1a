"""The end of a graph: what only turns logits into another form of the answer is cut off.

Softmax, LogSoftmax, a normalisation of probabilities, ArgMax, a list of maps. None of them changes
which logit is the largest where it leads by more than their rounding (the verifier requires that:
``workers.verification.rounding.answer_gap``). The Sigmoid behind one score is cut off likewise.
Margins, radii and the comparison with ONNX Runtime are then in units of the logits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper

from models.onnx.graph import Activation, Operation

__all__ = [
    "FINAL_OPERATORS",
    "Ending",
    "cut_ending",
    "cut_sigmoid",
    "end_in",
    "ends_in_sigmoid",
    "of_layers",
    "refuse_joined_rows",
    "refuse_other_axes",
]

#: Operators that are taken at the very end only, and left out there.
FINAL_OPERATORS = ("ArgMax", "LogSoftmax", "Normalizer", "Softmax", "ZipMap")
#: What stands there and is a layer too, in the midst of a network.
_LAYERS = ("Cast", "Concat", "Identity", "LogSoftmax", "Sigmoid", "Softmax", "Sub")
#: How many classes have numbers of their own in the element type that an ArgMax is cast to.
_NUMBERS = {
    TensorProto.BOOL: 2,
    TensorProto.INT8: 2**7,
    TensorProto.UINT8: 2**8,
    TensorProto.INT16: 2**15,
    TensorProto.UINT16: 2**16,
    TensorProto.FLOAT16: 2**11,
    TensorProto.FLOAT: 2**24,
    **dict.fromkeys(
        (
            TensorProto.INT32,
            TensorProto.UINT32,
            TensorProto.INT64,
            TensorProto.UINT64,
            TensorProto.DOUBLE,
        ),
        2**31,
    ),
}
#: What a LinearClassifier may do with its scores, and what that is called where it is left out.
_TRANSFORMS = {b"SOFTMAX": "Softmax", b"LOGISTIC": "Sigmoid"}


@dataclass
class Ending:
    """What was cut off the end of a graph.

    dropped: names of the operators in the order of the graph. alike: names of values cut off that
    have the type and shape of the logits. nodes: those whose axis must be that of the classes, and
    casts of their number.
    pair: the node that joined 1 - p and p of one score, whose Sigmoid p was.
    """

    dropped: list[str] = field(default_factory=list)
    alike: list[str] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)
    pair: NodeProto | None = None

    def left_out(self, node: NodeProto) -> None:
        """Note an operator; it stands before those noted earlier."""
        self.dropped.insert(0, node.op_type)
        self.nodes.append(_copied(node))


def _copied(node: NodeProto) -> NodeProto:
    return NodeProto.FromString(node.SerializeToString())


class _Walk:
    """A graph seen backwards from its one output, as long as nothing else reads what is there."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.uses = Counter(source for node in graph.node for source in node.input)
        self.makers: dict[str, list[int]] = {}
        for index, node in enumerate(graph.node):
            for output in node.output:
                self.makers.setdefault(output, []).append(index)
        #: The value looked at, and the nodes between it and the output.
        self.at, self.passed = graph.output[0].name, list[int]()
        self.kept: tuple[str, list[int]] | None = None

    def maker(self, name: str, uses: int) -> NodeProto | None:
        """The one node that gives this value, where it is read ``uses`` times and no other result
        of the node is."""
        found = self.makers.get(name, [])
        if len(found) != 1 or self.uses[name] != uses or found[0] in self.passed:
            return None
        node = self.graph.node[found[0]]
        others = any(self.uses[output] for output in node.output if output != name)
        return None if others or not node.input or not node.input[0] else node

    def behind(self, *kinds: str, casts: bool = False) -> tuple[NodeProto, list[str]] | None:
        """The operator of these kinds that the value looked at is the result of, and the names of
        the values passed. Then its input is looked at; nothing happens where there is none.

        Over Identity and a Cast to float, and over any Cast where ``casts``.
        """
        at, passed, names = self.at, len(self.passed), [self.at]
        while (node := self.maker(self.at, 1 if self.passed else 0)) is not None:
            kind = node.op_type
            over = kind == "Identity" or (kind == "Cast" and (casts or _gives_floats(node)))
            if kind not in kinds and not over:
                break
            self.passed.append(self.makers[self.at][0])
            self.at = node.input[0]
            if kind in kinds:
                return node, names
            names.append(self.at)
        self.at = at
        del self.passed[passed:]
        return None

    def taken(self) -> list[NodeProto]:
        """The nodes passed so far."""
        return [self.graph.node[index] for index in self.passed]

    def keep(self) -> None:
        """The graph is to end in the value looked at, without what was passed."""
        self.kept = (self.at, list(self.passed))

    def finish(self) -> None:
        """Let the graph end in what was kept last."""
        if self.kept is not None:
            name, taken = self.kept
            for index in sorted(taken, reverse=True):
                del self.graph.node[index]
            end_in(self.graph, name)


def end_in(graph: GraphProto, name: str) -> None:
    """Make a value of floats the graph's one output, in place."""
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name == name:
            del graph.value_info[index]


def cut_ending(graph: GraphProto) -> Ending:
    """Take what only makes another form of the answer off the end of a graph with one output, in
    place: [probabilities] [Normalizer] [ArgMax or ZipMap].

    A Normalizer goes only with the probabilities before it; behind raw scores it might round to a
    tie what differs by any given number, and stays as a layer.
    """
    walk, ending = _Walk(graph), Ending()
    if walk.behind("ZipMap", casts=True) is not None:
        walk.keep()
    elif (found := walk.behind("ArgMax", casts=True)) is not None:
        casts = [node for node in walk.taken() if node.op_type == "Cast"]
        ending.nodes += [_copied(node) for node in casts]
        ending.left_out(found[0])
        walk.keep()
    normalizer = walk.behind("Normalizer")
    if normalizer is not None and not _sums_to_one(normalizer[0]):
        walk.finish()
        return ending
    probabilities = walk.behind("Softmax", "LogSoftmax")
    if probabilities is not None:
        if normalizer is not None:
            ending.dropped.insert(0, "Normalizer")
        if not ending.dropped:
            ending.alike = probabilities[1]
        ending.left_out(probabilities[0])
        walk.keep()
    elif (transform := _scores_alone(walk)) is not None:
        ending.dropped[:0] = [transform, *(["Normalizer"] if normalizer is not None else [])]
        walk.keep()
    elif normalizer is None and (pair := _two_probabilities(walk)) is not None:
        ending.dropped.insert(0, "Sigmoid")
        ending.pair = _copied(pair)
        walk.keep()
    walk.finish()
    return ending


def of_layers(graph: GraphProto) -> bool:
    """Whether what ``cut_ending`` would take off the end can be a layer of the network as well."""
    copy = GraphProto.FromString(graph.SerializeToString())
    cut_ending(copy)
    before, after = (
        Counter(node.SerializeToString() for node in each.node) for each in (graph, copy)
    )
    taken = {NodeProto.FromString(node).op_type for node in before - after}
    return taken <= {*_LAYERS}


def cut_sigmoid(graph: GraphProto) -> bool:
    """Take a Sigmoid off the end, in place; whether there was one."""
    walk = _Walk(graph)
    if walk.behind("Sigmoid") is None and not _behind_logistic(walk):
        return False
    walk.keep()
    walk.finish()
    return True


def ends_in_sigmoid(graph: GraphProto) -> bool:
    """Whether a Sigmoid gives the output, or what is written in its place."""
    walk = _Walk(graph)
    return walk.behind("Sigmoid") is not None or _behind_logistic(walk)


def _behind_logistic(walk: _Walk) -> bool:
    """Over 1 / (1 + exp(-z)) to z; whether it is that.

    An infinite divisor gives 0. Like a Sigmoid's kernel it is off by less than 1e-6 everywhere
    (benchmarks/verification/kernels.py).
    """
    at, passed = walk.at, list(walk.passed)
    made = walk.behind("Reciprocal", "Div")
    if made is not None and made[0].op_type == "Div":
        walk.at = made[0].input[1]
    steps = [made is not None and _one_over(walk.graph, made[0])]
    if steps[0] and (sum_ := walk.maker(walk.at, 1)) is not None and sum_.op_type == "Add":
        ones = [_is_one(walk.graph, name) for name in sum_.input]
        walk.passed.append(walk.makers[walk.at][0])
        walk.at = sum_.input[1 if ones[0] else 0]
        steps += [any(ones), walk.behind("Exp") is not None, walk.behind("Neg") is not None]
    if len(steps) == 4 and all(steps):
        return True
    walk.at, walk.passed = at, passed
    return False


def _one_over(graph: GraphProto, node: NodeProto) -> bool:
    return node.op_type == "Reciprocal" or _is_one(graph, node.input[0])


def _scores_alone(walk: _Walk) -> str | None:
    """Have a LinearClassifier at the end give its scores; what it did with them before.

    LOGISTIC is taken of two scores z and -z only: of others it may make ties anywhere.
    """
    node = walk.maker(walk.at, 1 if walk.passed else 0)
    if node is None or node.op_type != "LinearClassifier" or list(node.output)[1:] != [walk.at]:
        return None
    given = {attribute.name: attribute for attribute in node.attribute}
    transform = _TRANSFORMS.get(given["post_transform"].s) if "post_transform" in given else None
    if transform is None or (transform == "Sigmoid" and not _opposite(given)):
        return None
    given["post_transform"].s = b"NONE"
    return transform


def _opposite(given: Mapping[str, AttributeProto]) -> bool:
    weights = list(given["coefficients"].floats) if "coefficients" in given else []
    biases = list(given["intercepts"].floats) if "intercepts" in given else [0.0, 0.0]
    half = len(weights) // 2
    return (
        len(biases) == 2
        and len(weights) == 2 * half > 0
        and [*weights[:half], biases[0]] == [-number for number in (*weights[half:], biases[1])]
    )


def _two_probabilities(walk: _Walk) -> NodeProto | None:
    """The node that joins 1 - p and p for p = Sigmoid(z), at the end; then z is looked at."""
    at, passed = walk.at, list(walk.passed)
    node = walk.maker(at, 1 if passed else 0)
    if node is None or node.op_type != "Concat" or len(node.input) != 2:
        return None
    rest, p = node.input
    one = walk.maker(rest, 1)
    if one is None or one.op_type != "Sub" or list(one.input)[1:] != [p]:
        return None
    sigmoid = walk.maker(p, 2)
    if sigmoid is None or sigmoid.op_type != "Sigmoid" or not _is_one(walk.graph, one.input[0]):
        return None
    walk.passed += [walk.makers[name][0] for name in (at, rest, p)]
    walk.at = sigmoid.input[0]
    return node


def _is_one(graph: GraphProto, name: str) -> bool:
    tensors = [(tensor.name, tensor) for tensor in graph.initializer]
    tensors += [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    for given, tensor in tensors:
        if given == name and tensor.data_type == TensorProto.FLOAT:
            stored = np.frombuffer(tensor.raw_data[:4], "<f4") if len(tensor.raw_data) == 4 else ()
            return [*tensor.float_data, *stored] == [1.0] and math.prod(tensor.dims) == 1
    return False


def _sums_to_one(node: NodeProto) -> bool:
    return any(a.name == "norm" and a.s == b"L1" for a in node.attribute)


def _gives_floats(node: NodeProto) -> bool:
    return any(a.name == "to" and a.i == TensorProto.FLOAT for a in node.attribute)


def refuse_other_axes(operation: Operation, logits: Activation) -> None:
    """The operator must run over all the logits of a sample and nothing else; a cast of the class's
    number must keep it."""
    if operation.op_type == "Cast":
        most = _NUMBERS.get(operation.attributes["to"], 0)
        if math.prod(logits.shape) > most:
            operation.refuse(
                f"of {math.prod(logits.shape)} classes only {most} keep their number in its type",
                hint="export the logits, or the number of the class as int64",
            )
        return
    if operation.op_type not in ("Softmax", "LogSoftmax", "ArgMax"):
        return
    shape = logits.shape
    axis = operation.axis(operation.attributes["axis"], len(shape) + 1)
    # Up to opset 12 a softmax runs over this axis and all that follow.
    flattens = operation.opset < 13 and operation.op_type != "ArgMax"
    covered = shape[axis - 1 :] if flattens else shape[axis - 1 : axis]
    if axis == 0:
        operation.refuse_batch("its axis is the batch axis")
    if math.prod(covered) != math.prod(shape):
        operation.refuse(
            f"axis {axis} of [batch, {', '.join(map(str, shape))}] is not the axis of the classes",
            hint="export the logits, before any softmax",
        )


def refuse_joined_rows(operation: Operation, score: Activation) -> None:
    """1 - p and p must be joined along an axis of the sample, not along the batch."""
    if operation.axis(operation.attributes["axis"], score.rank) == 0:
        operation.refuse_batch("it joins 1 - p and p along the batch axis")
