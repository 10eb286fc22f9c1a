"""A file that answers otherwise than its scores are read here is refused: the class of the least
distance, a label that begins at another probability than 0.5."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper

from models.errors import ModelError
from models.onnx.forms import answers
from models.onnx.forms.plain import Asked
from models.onnx.importer import read_onnx_bytes
from models.onnx.runtime import OnnxRuntimeModel
from tests.models.onnx.forms.files import answers_of, floats, node, written
from tests.models.onnx.graphs import graph_of, normal

LABEL = helper.make_tensor_value_info("label", TensorProto.INT64, [None])
INPUT = [floats("x", "N", 4)]
NUMBERS: dict[str, Any] = {
    "one": np.float32(1),
    "minus": np.array([-2], np.float32),
    "half": np.float32(0.5),
    "most": np.float32(0.7),
    "zero": np.float32(0),
    "k": np.array([1], np.int64),
}
SCORES = node("MatMul", ["x", "w"], ["s"])
#: Files whose label is the class of the least of the scores ``s``.
LEAST: dict[str, list[NodeProto]] = {
    "argmin": [node("ArgMin", ["s"], ["label"], axis=1)],
    "of a view": [
        node("Cast", ["s"], ["d"], to=TensorProto.FLOAT),
        node("ArgMin", ["d"], ["label"], axis=1),
    ],
    "negative": [node("Neg", ["s"], ["n"]), node("ArgMax", ["n"], ["label"], axis=1)],
    "times": [node("Mul", ["minus", "s"], ["n"]), node("ArgMax", ["n"], ["label"], axis=1)],
    "quotient": [node("Div", ["s", "minus"], ["n"]), node("ArgMax", ["n"], ["label"], axis=1)],
    "less": [node("Sub", ["one", "s"], ["n"]), node("ArgMax", ["n"], ["label"], axis=1)],
    "top": [node("TopK", ["s", "k"], ["v", "label"], axis=1, largest=0)],
    "a number for each class": [
        node("Mul", ["s", "turning"], ["n"]),
        node("ArgMax", ["n"], ["label"], axis=1),
    ],
    "turned round, of one": [
        node("Neg", ["s"], ["n"]),
        node("Max", ["n"], ["m"]),
        node("Dropout", ["m"], ["d"]),
        node("Transpose", ["d"], ["t"]),
        node("ArgMax", ["t"], ["label"], axis=0, keepdims=0),
    ],
    "softmax": [
        node("Neg", ["s"], ["n"]),
        node("Softmax", ["n"], ["p"], axis=1),
        node("ArgMax", ["p"], ["label"], axis=1),
    ],
}
#: Files whose label is the class of the largest one.
LARGEST: dict[str, list[NodeProto]] = {
    "argmax": [node("ArgMax", ["s"], ["label"], axis=1)],
    "twice": [
        node("Neg", ["s"], ["n"]),
        node("Sub", ["one", "n"], ["m"]),
        node("ArgMax", ["m"], ["label"], axis=1),
    ],
    "argmin": [node("Neg", ["s"], ["n"]), node("ArgMin", ["n"], ["label"], axis=1)],
    "top": [node("TopK", ["s", "k"], ["v", "label"], axis=1)],
    "something else": [
        node("Mul", ["s", "x3"], ["n"]),
        node("ArgMin", ["n"], ["label"], axis=1),
    ],
}


def scored(more: list[NodeProto], classes: int = 3, output: str = "s") -> bytes:
    """A file with the scores (or what is made of them) beside a label."""
    constants: dict[str, Any] = {"w": normal(0, 4, classes), "x3": normal(1, 1, 3), **NUMBERS}
    constants["turning"] = -np.ones((1, 3), np.float32)
    outputs = [LABEL, floats(output, "N", classes)]
    return written([SCORES, *more], INPUT, outputs, constants)


@pytest.mark.parametrize("name", LEAST)
def test_a_file_that_answers_with_the_class_of_the_least_score_is_refused(name: str) -> None:
    data = scored(LEAST[name])
    rows = normal(3, 8, 4)
    places = OnnxRuntimeModel(scored(LARGEST["argmax"]), (4,))(rows)
    given = [int(row.reshape(-1)[0]) for row in answers_of(data, rows, "label")]
    assert given == places.argmin(1).tolist()
    with pytest.raises(ModelError) as raised:
        read_onnx_bytes(data)
    assert raised.value.code == "least_score"
    assert read_onnx_bytes(data, asked=Asked(output="s")).network.classes == 3


@pytest.mark.parametrize("name", LARGEST)
def test_a_file_that_answers_with_the_class_of_the_largest_one_is_taken(name: str) -> None:
    assert read_onnx_bytes(scored(LARGEST[name])).network.classes == 3


def test_what_is_taken_may_fall_itself() -> None:
    """The scores are the distances' negatives, and the label the least distance's."""
    turned = [node("Neg", ["s"], ["p"]), *LEAST["argmin"]]
    assert read_onnx_bytes(scored(turned, output="p")).network.classes == 3
    with pytest.raises(ModelError) as raised:
        read_onnx_bytes(scored([node("Neg", ["s"], ["p"]), *LARGEST["argmax"]], output="p"))
    assert raised.value.code == "least_score"


def labelled(*made: NodeProto, output: str = "p", **given: Any) -> bytes:
    """One score ``s``, its Sigmoid ``p``, and a label of it."""
    more = [node("Sigmoid", ["s"], ["p"]), *made]
    return scored([*more, node("Cast", ["c"], ["label"], to=TensorProto.INT64)], 1, output, **given)


OTHER = {
    "above 0.7": [node("Greater", ["p", "most"], ["c"])],
    "below 0.5": [node("Less", ["p", "half"], ["c"])],
    "0.5 above": [node("Greater", ["half", "p"], ["c"])],
    "not above 0.5": [node("Greater", ["p", "half"], ["g"]), node("Not", ["g"], ["c"])],
    "the score above 1": [node("Greater", ["s", "one"], ["c"])],
    "the score above 0.5": [node("Greater", ["s", "half"], ["c"])],
    "the score less 0.7 above 0": [
        node("Sub", ["s", "most"], ["d"]),
        node("Greater", ["d", "zero"], ["c"]),
    ],
    "its half above 0.5": [
        node("Mul", ["half", "s"], ["d"]),
        node("Greater", ["d", "half"], ["c"]),
    ],
    "its negative above 0": [node("Neg", ["s"], ["d"]), node("Greater", ["d", "zero"], ["c"])],
    "its integer above 0": [
        node("Cast", ["s"], ["i"], to=TensorProto.INT64),
        node("Cast", ["i"], ["d"], to=TensorProto.FLOAT),
        node("Greater", ["d", "zero"], ["c"]),
    ],
    "0 where above 0.5": [
        node("Greater", ["p", "half"], ["g"]),
        node("Where", ["g", "zero", "one"], ["c"]),
    ],
    "1 less what is above 0": [
        node("Greater", ["s", "zero"], ["g"]),
        node("Cast", ["g"], ["f"], to=TensorProto.FLOAT),
        node("Sub", ["one", "f"], ["c"]),
    ],
}
PLAIN = {
    "above 0.5": [node("Greater", ["p", "half"], ["c"])],
    "0.5 below": [node("Less", ["half", "p"], ["c"])],
    "not below 0.5": [node("Less", ["p", "half"], ["l"]), node("Not", ["l"], ["c"])],
    "the score above 0": [node("Greater", ["s", "zero"], ["c"])],
    "its negative below 0": [node("Neg", ["s"], ["d"]), node("Less", ["d", "zero"], ["c"])],
    "half more above 1": [node("Add", ["p", "half"], ["d"]), node("Greater", ["d", "one"], ["c"])],
    "1 where above 0.5": [
        node("Greater", ["p", "half"], ["g"]),
        node("Where", ["g", "one", "zero"], ["c"]),
    ],
    "a probability of its own": [
        node("Sigmoid", ["s"], ["q"]),
        node("Sub", ["q", "half"], ["d"]),
        node("Greater", ["d", "zero"], ["c"]),
    ],
}


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("name", OTHER)
def test_a_label_that_begins_at_another_score_is_refused(name: str, binary: bool) -> None:
    with pytest.raises(ModelError) as raised:
        read_onnx_bytes(labelled(*OTHER[name]), asked=Asked(binary=binary))
    assert raised.value.code == "label_threshold"
    named = Asked(output="p", binary=binary)
    assert read_onnx_bytes(labelled(*OTHER[name]), asked=named).binary


@pytest.mark.parametrize("name", PLAIN)
def test_a_label_that_begins_at_one_half_is_taken(name: str) -> None:
    assert read_onnx_bytes(labelled(*PLAIN[name])).binary
    raw = labelled(*PLAIN[name], output="s")
    assert read_onnx_bytes(raw, asked=Asked(binary=True)).binary


def joined(*made: NodeProto, first: str = "rest", second: str = "p") -> bytes:
    """The same, the probabilities of both classes as its scores."""
    nodes = [
        *(SCORES, node("Sigmoid", ["s"], ["p"]), node("Sub", ["one", "p"], ["rest"])),
        node("Concat", [first, second], ["both"], axis=1),
        *made,
        node("Cast", ["c"], ["label"], to=TensorProto.INT64),
    ]
    constants = {"w": normal(0, 4, 1), **NUMBERS}
    return written(nodes, INPUT, [LABEL, floats("both", "N", 2)], constants)


@pytest.mark.parametrize("name", OTHER)
def test_so_is_a_label_beside_the_probabilities_of_both_classes(name: str) -> None:
    with pytest.raises(ModelError) as raised:
        read_onnx_bytes(joined(*OTHER[name]))
    assert raised.value.code == "label_threshold"
    assert read_onnx_bytes(joined(*OTHER[name]), asked=Asked(output="both")).binary


@pytest.mark.parametrize("name", PLAIN)
def test_and_one_that_begins_at_one_half_is_taken_there(name: str) -> None:
    assert read_onnx_bytes(joined(*PLAIN[name])).binary
    # With p in front class 1 is where 1 - p is the larger one.
    turned = joined(*PLAIN[name], first="p", second="rest")
    with pytest.raises(ModelError) as raised:
        read_onnx_bytes(turned)
    assert raised.value.code == "label_threshold"


def test_the_label_of_probabilities_in_the_other_order_begins_below_one_half() -> None:
    below, apart = OTHER["below 0.5"], [node("Less", ["p", "most"], ["c"])]
    assert not read_onnx_bytes(joined(*below, first="p", second="rest")).binary
    with pytest.raises(ModelError) as raised:
        read_onnx_bytes(joined(*apart, first="p", second="rest"))
    assert raised.value.code == "label_threshold"


NEVER = {
    "percent": [node("Mul", ["p", "hundred"], ["y"])],
    "the other class": [node("Sub", ["one", "p"], ["y"])],
    "odds": [node("Exp", ["s"], ["y"])],
    "a softplus, turned": [node("Softplus", ["s"], ["t"]), node("Neg", ["t"], ["y"])],
}


@pytest.mark.parametrize("name", NEVER)
def test_one_score_that_keeps_to_one_side_of_0_is_refused(name: str) -> None:
    """It would be certified as one class for every input."""
    nodes = [SCORES, node("Sigmoid", ["s"], ["p"]), *NEVER[name]]
    constants = {"w": normal(0, 4, 1), **NUMBERS, "hundred": np.float32(100)}
    data = written(nodes, INPUT, [floats("y", "N", 1)], constants)
    with pytest.raises(ModelError, match="would be the answer for every input") as raised:
        read_onnx_bytes(data, asked=Asked(binary=True))
    assert raised.value.code == "invalid_network"
    assert read_onnx_bytes(data, asked=Asked(output="y", binary=True)).binary


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Sub", ["p", "most"], ["y"])],
        [node("Mul", ["s", "most"], ["y"])],
        [node("Identity", ["p"], ["y"])],
        [node("Tanh", ["s"], ["y"])],
    ],
)
def test_one_score_on_both_sides_of_0_is_taken(nodes: list[NodeProto]) -> None:
    constants = {"w": normal(0, 4, 1), **NUMBERS}
    nodes = [SCORES, node("Sigmoid", ["s"], ["p"]), *nodes]
    data = written(nodes, INPUT, [floats("y", "N", 1)], constants)
    assert read_onnx_bytes(data, asked=Asked(binary=True)).binary


def test_a_comparison_that_the_scores_are_made_of_is_no_label() -> None:
    """LeakyRelu as a choice at 0, and a property, which asks about the outputs as they are."""
    bent = [
        node("Greater", ["s", "zero"], ["b"]),
        node("Mul", ["s", "half"], ["h"]),
        node("Where", ["b", "s", "h"], ["t"]),
        node("Sigmoid", ["t"], ["p"]),
        node("Greater", ["p", "half"], ["c"]),
        node("Cast", ["c"], ["label"], to=TensorProto.INT64),
    ]
    assert read_onnx_bytes(scored(bent, 1, "p")).binary
    asked = Asked(classifier=False)
    assert read_onnx_bytes(labelled(*OTHER["above 0.7"]), asked=asked).network.classes == 1


def test_odd_nodes_and_long_chains_beside_the_scores_are_no_trouble() -> None:
    """Nodes without inputs or outputs are refused as such later on; thousands of ends that share
    one long chain are followed once."""
    chain = [node("Identity", [f"v{at}"], [f"v{at + 1}"]) for at in range(3000)]
    ends = [node("Cast", ["v3000"], [f"e{at}"], to=TensorProto.INT64) for at in range(3000)]
    odd = [node(kind, [], []) for kind in ("Binarizer", "Greater", "TopK", "ArgMin", "Neg")]
    start = node("Greater", ["p", "most"], ["v0"])
    nodes = [SCORES, node("Sigmoid", ["s"], ["p"]), *odd, start, *chain, *ends]
    graph = graph_of(nodes, (4,), {"w": normal(0, 4, 1), "most": NUMBERS["most"]}).graph
    with pytest.raises(ModelError) as raised:
        answers.refuse_other_answers(graph, "p", binary=False)
    assert raised.value.code == "label_threshold"
